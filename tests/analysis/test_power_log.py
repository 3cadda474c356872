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
    with pytest.raises(
        UserError, match=r"no epoch in its power.jsonl; .* training.analyse_every=1"
    ):
        read_power_log(tmp_path)


def test_a_record_whose_write_was_cut_off_is_measured_again(tmp_path):
    power = Power(0.1, 0.2, 0.3, 0.4, 1.0, 8)
    append_power_log(tmp_path, 1, {"norm": power})
    with (tmp_path / "power.jsonl").open("a") as stream:
        stream.write('{"epoch": 2, "lay')  # killed here
    assert read_power_log(tmp_path) == [{"norm": power}]
    append_power_log(tmp_path, 2, {"norm": power})
    assert read_power_log(tmp_path) == [{"norm": power}] * 2


@pytest.mark.parametrize(
    "line",
    [
        *("{}", "[]", "power", '{"epoch": 1, "layers": {"norm": {"p1": 0}}}'),
        *('{"epoch": "1", "layers": {}}', '{"epoch": 1, "layers": {"norm": {"p1": "0"}}}'),
    ],
)
def test_a_line_that_is_no_record(tmp_path, line):
    (tmp_path / "power.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="line 1 is not the record of an epoch"):
        read_power_log(tmp_path)
