"""The power decomposition against brute force in numpy, float64."""

import numpy as np
import pytest
import torch

from ipu_proxynorm.analysis import PowerAccumulator, power_decomposition


def by_brute_force(y):
    """P1 ... P4 and the mean power, term by term from the definition."""
    instances, channels = y.shape[:2]
    mu = np.array([[y[n, c].mean() for c in range(channels)] for n in range(instances)])
    sigma = np.array([[y[n, c].std() for c in range(channels)] for n in range(instances)])
    return [
        np.mean([mu[:, c].mean() ** 2 for c in range(channels)]),
        np.mean([mu[:, c].var() for c in range(channels)]),
        np.mean([sigma[:, c].mean() ** 2 for c in range(channels)]),
        np.mean([sigma[:, c].var() for c in range(channels)]),
        np.mean(y**2),
    ]


def figures(power):
    return [power.p1, power.p2, power.p3, power.p4, power.mean_power]


@pytest.fixture
def y():
    scale = torch.rand(23, 5, 1, 1, dtype=torch.float64) + 0.1
    return torch.randn(23, 5, 4, 3, dtype=torch.float64) * scale + torch.randn(5, 1, 1)


def test_equals_the_definition(y):
    np.testing.assert_allclose(
        figures(power_decomposition(y)), by_brute_force(y.numpy()), rtol=1e-12
    )


def test_the_four_sum_to_the_mean_power(y):
    power = power_decomposition(y)
    assert power.total == pytest.approx(power.mean_power, rel=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7, 22])
def test_does_not_depend_on_the_batch_size(y, size):
    accumulator = PowerAccumulator()
    for part in y.split(size):
        accumulator.update(part)
    np.testing.assert_allclose(
        figures(accumulator.result()), figures(power_decomposition(y)), rtol=1e-12
    )
    assert accumulator.result().instances == 23


def test_a_large_mean_costs_no_digits(y):
    """A sum of squares would lose the variance here: 1e7 squared is 1e14."""
    shifted = power_decomposition(y + 1e7)
    assert shifted.p2 == pytest.approx(power_decomposition(y).p2, rel=1e-6)


def test_float16_instances_are_accumulated_in_float64():
    y = torch.full((1, 2, 64, 64), 200.0, dtype=torch.float16)  # its square overflows float16
    assert power_decomposition(y).p1 == 40000.0


def test_more_elements_than_fit_one_chunk(monkeypatch, y):
    whole = figures(power_decomposition(y))
    monkeypatch.setattr("ipu_proxynorm.analysis.power._CHUNK", 100)  # one instance and a bit
    np.testing.assert_allclose(figures(power_decomposition(y)), whole, rtol=1e-12)


def test_without_spatial_dimensions_nothing_varies_inside_an_instance():
    y = torch.randn(9, 4, dtype=torch.float64)
    power = power_decomposition(y)
    assert power.p3 == power.p4 == 0
    assert power.p1 == pytest.approx((y.mean(0) ** 2).mean().item())
    assert power.p2 == pytest.approx(y.var(0, unbiased=False).mean().item())


def test_no_instance_is_an_error():
    with pytest.raises(ValueError, match="at least one instance"):
        PowerAccumulator().result()
