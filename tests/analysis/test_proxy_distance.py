"""The distance between channels and their proxies, against NumPy and SciPy on whole tensors."""

import numpy as np
import pytest
import torch
from scipy import stats

from ipu_proxynorm.analysis import DISTANCES, record_proxies
from ipu_proxynorm.norm import create_norm_act


@pytest.fixture
def model():
    torch.manual_seed(1)
    units = [create_norm_act("gn2+pn", 6, "silu"), create_norm_act("gn2", 6)]
    with torch.no_grad():
        for parameter in units[0].parameters():
            parameter.add_(0.4 * torch.randn(6))
    convolution = torch.nn.Conv2d(3, 6, 3)
    return torch.nn.Sequential(convolution, *units).double().eval()


def rms(values):
    return np.sqrt(np.mean(np.square(values)))


def test_figures_are_those_of_the_whole_tensors(model):
    x = torch.rand(12, 3, 7, 7, dtype=torch.float64).exp()
    (found,) = record_proxies(model, x.split(5)).values()
    unit = model[1]
    with torch.no_grad():
        y = torch.nn.functional.group_norm(model[0](x), 2)
        out = model[1](model[0](x))
    gamma, beta, proxy_gamma, proxy_beta = (p.detach().numpy() for p in unit.moment_parameters)
    channels = y.transpose(0, 1).flatten(1).numpy()
    t = (channels - proxy_beta[:, None]) / (1 + proxy_gamma[:, None])
    assert found.mean == pytest.approx(rms(t.mean(1)))
    assert found.deviation == pytest.approx(rms(t.std(1) - 1))
    assert found.skewness == pytest.approx(rms(stats.skew(t, axis=1)))
    assert found.kurtosis == pytest.approx(rms(stats.kurtosis(t, axis=1)))
    left = out.transpose(0, 1).flatten(1).numpy()
    assert found.left_mean == pytest.approx(rms(left.mean(1)), rel=1e-6)
    activated = channels * gamma[:, None] + beta[:, None]
    variance = (activated / (1 + np.exp(-activated))).var(1)
    true = np.sqrt(variance / (variance + unit.proxy_eps))
    assert found.left_deviation == pytest.approx(rms(left.std(1) - true), rel=1e-6)
    assert found.instances == 12


def test_gaussian_channels_of_the_proxys_own_moments_are_at_no_distance():
    unit = create_norm_act("gn1+pn", 1).double()
    x = torch.randn(1, 1, 2000, 500, dtype=torch.float64, generator=torch.manual_seed(0))
    (found,) = record_proxies(torch.nn.Sequential(unit), [x]).values()
    for name in DISTANCES:  # a million values
        assert getattr(found, name) == pytest.approx(0, abs=0.02), name


def test_a_network_without_proxy_norm_has_none():
    model = torch.nn.Sequential(create_norm_act("ln", 4))
    assert record_proxies(model, [torch.zeros(1, 4, 2, 2)]) == {}
