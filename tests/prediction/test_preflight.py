"""What would be refused of a run, or of anybody's model, all of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load
from ipu_proxynorm.prediction.preflight import preflight, preflight_run

pytestmark = pytest.mark.simulator


def test_all_refusals_are_found_not_the_first_alone():
    def forward(x):
        pooled = F.max_pool2d(x, 2)
        shifted = torch.erfinv(pooled)
        return F.adaptive_avg_pool2d(shifted, 3)

    found = preflight("mine", lambda: poptorch.inferenceModel(forward), torch.ones(1, 1, 8, 8))
    assert found.complete
    assert len(found.refused) == 3
    for text, line in zip(("stride", "aten::erfinv", "pooling"), (1, 2, 3)):
        refusal = found.refused[line - 1]
        assert text in refusal
        assert f"{__file__}:{forward.__code__.co_firstlineno + line}" in refusal


def test_a_trace_that_stops_says_so():
    found = preflight(
        "mine", lambda: poptorch.inferenceModel(lambda x: x * x.max().item()), torch.ones(3)
    )
    assert not found.complete
    assert len(found.refused) == 1


def test_options_that_contradict_each_other_are_refused():
    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    found = preflight("mine", lambda: poptorch.inferenceModel(nn.ReLU(), options), torch.ones(3))
    assert "gradientAccumulation to 1" in found.refused[0]


def test_nothing_is_compiled_and_the_model_stays_as_it_is():
    model = nn.BatchNorm1d(3)
    executor = poptorch.inferenceModel(model)
    found = preflight("mine", lambda: executor, torch.ones(2, 3))
    assert not found.refused
    assert not executor.isCompiled()
    assert model.num_batches_tracked == 0
    assert any("batch_norm" in kind for kind in found.kinds)


def test_a_run_of_ours_passes():
    found = preflight_run(load("configs/quickstart.yaml", ["ipu.micro_batch_size=1"]))
    assert found.refused == []
    assert [flight.ipus for flight in found.flights] == [4, 4]
    assert found.unproven
    convolutions = [line for line in found.flights[0].operators if line.startswith("convolution")]
    assert "float32[" in convolutions[0]
    assert ".py:" in convolutions[0]


def test_three_ipus_are_refused():
    config = load("configs/quickstart.yaml", ["ipu.micro_batch_size=1", "ipu.replication_factor=3"])
    found = preflight_run(config, memory=False)
    assert any("power of 2" in refusal for refusal in found.refused)


def test_command(capsys):
    assert main(["preflight", "configs/quickstart.yaml", "ipu.micro_batch_size=1"]) == 0
    output = capsys.readouterr().out
    assert "nothing refused" in output
    assert "unproven:" in output
    assert main([
        "preflight", "configs/quickstart.yaml", "ipu.micro_batch_size=1",
        "ipu.replication_factor=3",
    ]) == 1  # fmt: skip
    assert "refused: training: " in capsys.readouterr().out
