"""The power decomposition over the epochs of a run."""

import pytest

from ipu_proxynorm.analysis import Power
from ipu_proxynorm.analysis.power_log import append_power_log, average, read_power_log
from ipu_proxynorm.errors import UserError


def test_epochs_are_kept_in_order_and_averaged(tmp_path):
    first, second = Power(0.1, 0.2, 0.3, 0.4, 1.0, 8), Power(0.3, 0.2, 0.1, 0.4, 1.0, 8)
    append_power_log(tmp_path, 2, {"norm": second})
    append_power_log(tmp_path, 1, {"norm": Power(0, 0, 0, 0, 0, 8)})
    append_power_log(tmp_path, 1, {"norm": first})  # a resumed run measures its epoch again
    assert read_power_log(tmp_path) == [{"norm": first}, {"norm": second}]
    mean = average(read_power_log(tmp_path))["norm"]
    assert [mean.p1, mean.p2, mean.p3, mean.p4] == pytest.approx([0.2, 0.2, 0.2, 0.4])
    assert mean.total == pytest.approx(mean.mean_power)


def test_a_run_that_recorded_none(tmp_path):
    with pytest.raises(UserError, match=r"no power.jsonl in it; .* training.analyse_every=1"):
        read_power_log(tmp_path)
