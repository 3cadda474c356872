from __future__ import annotations

import contextlib
import functools
import math
from typing import Callable

import pytest
import torch
import torch.nn.functional as F
from scipy import integrate, stats
from torch import Tensor, nn

from ipu_proxynorm.norm import plain_operators, proxy_moments, resolve_activation
from ipu_proxynorm.norm.activations import ACTIVATIONS
from ipu_proxynorm.norm.moments.derivatives import moment_derivatives

EPS = 0.03
PUBLISHED = {  # activation: method: mean, var, 1/std for N(0, 1)
    "relu": {"sampled": (0.398451, 0.338035, 1.648373), "exact": (0.398942, 0.340845, 1.642116)},
    "silu": {"sampled": (0.206048, 0.310004, 1.714977), "exact": (0.206621, 0.313083, 1.707262)},
    "identity": {"sampled": (0.0, 0.993596, 0.988407), "exact": (0.0, 1.0, 0.985329)},
}


def standard_proxy(dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    one, zero = torch.ones(1, dtype=dtype), torch.zeros(1, dtype=dtype)
    return one, zero, zero, zero


@pytest.mark.parametrize("method", ["sampled", "exact"])
@pytest.mark.parametrize("activation", PUBLISHED)
def test_values_of_the_standard_proxy(activation: str, method: str) -> None:
    mean, var = proxy_moments(*standard_proxy(), activation, method=method, n=200)
    got = (mean.item(), var.item(), (var + EPS).rsqrt().item())
    assert got == pytest.approx(PUBLISHED[activation][method], abs=1e-6)


def reference(phi: Callable[[Tensor], Tensor], m: float, s: float) -> tuple[float, float]:
    """Mean and standard deviation (with ε) by scipy's adaptive quadrature, in float64."""

    def expect(f: Callable[[float], float]) -> float:
        kinks = sorted({min(max((k - m) / s, -9.0), 9.0) for k in (0.0, 6.0, -3.0, 3.0)})
        value, _ = integrate.quad(
            lambda t: f(t) * stats.norm.pdf(t), -9, 9, points=kinks, limit=400, epsabs=1e-11
        )
        return value

    def value(t: float) -> float:
        return phi(torch.tensor(m + s * t, dtype=torch.float64)).item()

    mean = expect(value)
    return mean, (expect(lambda t: (value(t) - mean) ** 2) + EPS) ** 0.5


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_exact_moments_agree_with_adaptive_quadrature(name: str) -> None:
    weight = torch.tensor([3.0, -2.5])
    bias = torch.tensor([-3.0, 2.0])
    proxy_weight = torch.tensor([0.5, -0.5])
    proxy_bias = torch.tensor([-0.5, 0.5])
    mean, var = proxy_moments(weight, bias, proxy_weight, proxy_bias, name)
    for c in range(len(weight)):
        m = (weight[c] * proxy_bias[c] + bias[c]).item()
        s = abs(weight[c] * (1 + proxy_weight[c])).item()
        expected_mean, expected_std = reference(ACTIVATIONS[name].function, m, s)
        assert mean[c].item() == pytest.approx(expected_mean, abs=2e-6)
        assert (var[c] + EPS).sqrt().item() == pytest.approx(expected_std, abs=2e-6)


@pytest.mark.parametrize("method", ["exact", "sampled"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradients_agree_with_finite_differences(name: str, method: str) -> None:
    parameters = [torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(4)]

    def moments(*p: Tensor) -> tuple[Tensor, Tensor]:
        return proxy_moments(*p, activation=name, method=method)

    assert torch.autograd.gradcheck(moments, parameters)


def test_a_callable_is_taken_by_quadrature() -> None:
    mean, var = proxy_moments(*standard_proxy(torch.float64), torch.sin)
    assert mean.item() == pytest.approx(0.0, abs=1e-12)
    assert var.item() == pytest.approx((1 - torch.exp(torch.tensor(-2.0)).item()) / 2, abs=1e-7)


def relu(x: Tensor) -> Tensor:
    """Somebody's own."""
    return x.clamp(0, 0.5)


def hardswish(x: Tensor) -> Tensor:
    """Likewise."""
    return 3 * x * torch.sigmoid(x)


CALLABLES = {
    "own relu": relu,
    "own hardswish": hardswish,
    "own, in place": lambda x: x.clamp_(-1, 2),
    "partial": functools.partial(F.elu, inplace=True),
    "ELU": nn.ELU(2.0, inplace=True),
    "SELU": nn.SELU(inplace=True),
    "Threshold": nn.Threshold(0.1, 0.1, inplace=True),
    "no lower bound": nn.Hardtanh(-math.inf, 1.0),
    "no upper bound": nn.Hardtanh(-0.5, math.inf),
    "ReLU in other words": nn.Hardtanh(0.0, math.inf),
    "elu_": F.elu_,
    "relu_": torch.relu_,
    "method": Tensor.relu,
    "torch.relu": torch.relu,
    "sigmoid_": Tensor.sigmoid_,
    "in place alone": Tensor.zero_,
}


@pytest.mark.parametrize("method", ["sampled", "exact"])
@pytest.mark.parametrize("name", CALLABLES)
def test_callables_may_share_a_name_and_write_over_their_argument(name: str, method: str) -> None:
    phi, parameters = CALLABLES[name], [torch.tensor([p]) for p in (1.3, -0.4, 0.2, 0.3)]
    m, s = -0.4 + 1.3 * 0.3, 1.3 * 1.2
    expected = reference(lambda x: phi(x.clone()), m, s)
    n = 2_000  # quantiles
    for program in (contextlib.nullcontext(), plain_operators()):
        with program:
            mean, var = proxy_moments(*parameters, phi, method=method, n=n)
        assert (mean.item(), (var + EPS).sqrt().item()) == pytest.approx(expected, abs=2e-3)
    known = resolve_activation(phi)
    direct = moment_derivatives(torch.tensor([m]), torch.tensor([s]), known, method=method, n=n)
    values = direct.mean.item(), direct.variance.item()
    assert values == pytest.approx((mean.item(), var.item()), abs=1e-5)


def test_float16_parameters_have_float32_moments() -> None:
    mean, var = proxy_moments(*standard_proxy(torch.float16), "relu")
    assert mean.dtype == var.dtype == torch.float32


def test_refuses_an_unknown_method_and_activation() -> None:
    with pytest.raises(ValueError, match="unknown method 'exct': expected one of exact, sampled"):
        proxy_moments(*standard_proxy(), method="exct")
    with pytest.raises(ValueError, match=r"unknown activation 'rleu': .*did you mean 'relu'"):
        proxy_moments(*standard_proxy(), "rleu")
    with pytest.raises(ValueError, match="n is 0"):
        proxy_moments(*standard_proxy(), method="sampled", n=0)


def test_a_functional_is_recognised() -> None:
    exact = proxy_moments(*standard_proxy(), "relu")
    assert proxy_moments(*standard_proxy(), F.relu) == exact
    assert proxy_moments(*standard_proxy(), torch.nn.ReLU) == exact
    assert proxy_moments(*standard_proxy(), torch.nn.ReLU(inplace=True)) == exact
