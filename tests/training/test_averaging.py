"""Averages of weights, against their closed forms in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from ipu_proxynorm.config import TrainingConfig
from ipu_proxynorm.training.averaging import WeightAverage, weights_replaced


def readings(count=7):
    generator = torch.Generator().manual_seed(2)
    return [
        {
            "weight": torch.randn(3, 4, generator=generator),
            "half": torch.randn(5, generator=generator).half(),
            "count": torch.tensor(number),
        }
        for number in range(count)
    ]


def average(config, weights):
    result = WeightAverage.of(TrainingConfig(epochs=1, **config))
    for reading in weights:
        result.update(reading)
    return result


@pytest.mark.parametrize("key", ["weight", "half"])
def test_the_mean_of_all_readings(key):
    weights = readings()
    got = average({"average": "mean"}, weights).weights()[key]
    want = np.mean([reading[key].double().numpy() for reading in weights], axis=0)
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("key", ["weight", "half"])
def test_the_exponential_average_starts_at_the_first_reading(key):
    weights = readings()
    got = average({"average": "exponential", "average_decay": 0.9}, weights).weights()[key]
    values = [reading[key].double().numpy() for reading in weights]
    # The weights of the readings: 0.9^6 of the first, then 0.1 * 0.9^(6 - i).
    shares = [0.9**6, *(0.1 * 0.9 ** (6 - i) for i in range(1, 7))]
    assert sum(shares) == pytest.approx(1)
    want = sum(share * value for share, value in zip(shares, values))
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-13, atol=1e-15)


def test_integers_are_the_newest():
    assert int(average({"average": "mean"}, readings()).weights()["count"]) == 6


def test_no_average_unless_asked():
    assert WeightAverage.of(TrainingConfig(epochs=1)) is None


@pytest.mark.parametrize("kind", ["mean", "exponential"])
def test_a_saved_state_goes_on_bit_for_bit(kind, tmp_path):
    weights = readings()
    whole = average({"average": kind}, weights)
    first = average({"average": kind}, weights[:3])
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = average({"average": kind}, [])
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for reading in weights[3:]:
        second.update(reading)
    assert second.readings == 7
    for name, tensor in whole.weights().items():
        assert torch.equal(second.weights()[name], tensor)


def test_replaced_weights_come_back_also_after_an_error():
    layer = nn.Linear(2, 1)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    other = {name: torch.full_like(t, 1 / 3).double() for name, t in before.items()}

    def fail():
        with weights_replaced(layer, other):
            assert torch.equal(layer.weight, torch.full((1, 2), 1 / 3))
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fail()
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name])
