from __future__ import annotations

import pytest
import torch

import ipu_proxynorm.simulator as poptorch

pytestmark = pytest.mark.simulator


class Double(torch.nn.Module):
    def forward(self, x):
        return x * 2


def run(mode, value=7.0):
    options = poptorch.Options().deviceIterations(3)
    options._Popart.set("syntheticDataMode", mode)
    model = poptorch.inferenceModel(Double(), options)
    return model, model(torch.full((3, 5000), value))


def test_inputs_are_replaced_and_nothing_moves():
    model, result = run(2)
    assert result.shape == (3, 5000)
    assert float(result.mean()) == pytest.approx(0.0, abs=0.1)
    assert float(result.std()) == pytest.approx(2.0, abs=0.1)
    assert model.getPerfCounters() == {
        "input": [[]],
        "input_complete": [[]],
        "output": [[]],
        "output_complete": [[]],
    }
    assert model.getLatency() == (0.0, 0.0, 0.0)
    assert run(1)[1].abs().sum() == 0.0


def test_switched_off_the_data_are_real():
    model, result = run(0)
    assert bool((result == 14.0).all())
    assert [len(times) for times in model.getPerfCounters()["input"]] == [3]
