"""``run_ipu.py benchmark``: times of a run's host calls, and nothing on disk."""

import re

import pytest

from ipu_proxynorm.cli import main
from ipu_proxynorm.cli.benchmark import lines
from ipu_proxynorm.run.arithmetic import BatchArithmetic
from ipu_proxynorm.training.timing import Timing

QUICKSTART = ["benchmark", "configs/quickstart.yaml", "ipu.micro_batch_size=2", "--calls", "2"]


def test_times_are_medians_with_their_spread():
    timing = Timing(
        BatchArithmetic(4, 2, 3, 2, 48), "digits", 1.0, [0.5, 0.1, 0.2], [0.001, 0.003, 0.002]
    )
    assert lines(timing) == [
        "3 host calls after the first: 200.0 ms (100.0 to 500.0) each, 240 images/s",
        "weight update: 100.0 ms",
        "waited for the images of each: 2.0 ms (1.0 to 3.0), 0.7% of the time",
    ]


@pytest.mark.parametrize("option", [[], ["--device-data"]])
def test_the_command(option, tmp_path, capsys):
    assert main([*QUICKSTART, *option, f"runs={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    assert "quickstart: resnetv2_8 (gn4+pn) on " in printed
    batches = "2 (micro-batch) x 2 (replicas) x 4 (gradient accumulation) x 1 (device iterations)"
    assert f"host call: {batches} = 16 images\n" in printed
    assert re.search(r"compiled in \d+\.\d s; 8 micro-batches are computed together\n", printed)
    assert re.search(r"\n2 host calls after the first: .* images/s\n", printed)
    assert ("waited for the images of each" in printed) == (not option)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("calls", ["0", "-1", "10001"])
def test_a_wrong_number_of_calls_is_refused(calls, capsys):
    assert main([*QUICKSTART, "--calls", calls]) == 2
    assert f"--calls {calls}: expected 1 to 10000" in capsys.readouterr().err
