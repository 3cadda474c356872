"""The moments over the whole range of parameters, against a far finer quadrature in float64."""

from __future__ import annotations

import contextlib

import mpmath
import pytest
import torch
from torch import Tensor

from ipu_proxynorm.norm import plain_operators, proxy_moments
from ipu_proxynorm.norm.activations import ACTIVATIONS, Activation, resolve_activation
from ipu_proxynorm.norm.moments.derivatives import moment_derivatives
from ipu_proxynorm.norm.moments.relu import relu_moments

EPS = 0.03


def grid() -> list[Tensor]:
    """γ, β in [−3, 3] and γ̃, β̃ in [−0.5, 0.5], corners included, and points between; (C,)."""
    axes = [
        torch.tensor([-3.0, -0.7, 0.02, 1.1, 3.0]),
        torch.tensor([-3.0, -1.3, 0.0, 0.9, 3.0]),
        torch.tensor([-0.5, 0.0, 0.5]),
        torch.tensor([-0.5, 0.0, 0.5]),
    ]
    corners = torch.cartesian_prod(*axes)
    spread = torch.tensor([6.0, 6.0, 1.0, 1.0])
    between = (torch.rand(100, 4) - 0.5) * spread
    return list(torch.cat([corners, between]).unbind(1))


def fine_reference(
    activation: Activation, center: Tensor, scale: Tensor, per_channel: int = 4_001
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (with ε) by Simpson's rule between the kinks, in float64."""
    means, stds = [], []
    for m, s in zip(center.tolist(), scale.abs().tolist()):
        kinks = [(k - m) / s for k in (-3.0, -1.0, 0.0, 1.0, 3.0, 6.0)] if s else []
        ends = sorted({-9.0, 9.0, *(k for k in kinks if abs(k) < 9)})
        mean = second = mass = 0.0
        pieces = []
        for a, b in zip(ends, ends[1:]):
            t = torch.linspace(a, b, per_channel // len(ends) * 2 + 1, dtype=torch.float64)
            w = torch.full_like(t, 2.0)
            w[1::2] = 4.0
            w[0] = w[-1] = 1.0
            w = w * (t[1] - t[0]) / 3 * torch.exp(-0.5 * t * t)
            pieces.append((w, activation(m + s * t)))
        mass = sum(float(w.sum()) for w, _ in pieces)
        mean = sum(float((w * z).sum()) for w, z in pieces) / mass
        second = sum(float((w * (z - mean) ** 2).sum()) for w, z in pieces) / mass
        means.append(mean)
        stds.append((second + EPS) ** 0.5)
    return torch.tensor(means, dtype=torch.float64), torch.tensor(stds, dtype=torch.float64)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_float32_moments_within_5e_6_and_1e_7_in_the_median(name: str) -> None:
    weight, bias, proxy_weight, proxy_bias = grid()
    activation = resolve_activation(name)
    center = weight.double() * proxy_bias.double() + bias.double()
    scale = weight.double() * (1 + proxy_weight.double())
    mean, std = fine_reference(activation, center, scale)
    direct = moment_derivatives(center.float(), scale.float(), activation)
    plain = proxy_moments(weight, bias, proxy_weight, proxy_bias, name)
    for got_mean, got_var in (plain, direct[:2]):
        for error in (got_mean - mean, (got_var.double() + EPS).sqrt() - std):
            assert error.abs().max() < 5e-6
            assert error.abs().median() < 1e-7


def test_the_reference_itself_against_fifty_digits() -> None:
    mean, std = fine_reference(
        resolve_activation("gelu"), torch.tensor([-1.5]), torch.tensor([2.5])
    )
    with mpmath.workdps(50):

        def expect(f):  # type: ignore[no-untyped-def]
            return mpmath.quad(lambda t: f(-1.5 + 2.5 * t) * mpmath.npdf(t), [-15, -5, 0, 5, 15])

        exact = expect(lambda z: z * mpmath.ncdf(z))
        second = expect(lambda z: (z * mpmath.ncdf(z) - exact) ** 2)
        exact_std = mpmath.sqrt(second + EPS)
    assert mean.item() == pytest.approx(float(exact), abs=1e-9)
    assert std.item() == pytest.approx(float(exact_std), abs=1e-9)


@pytest.mark.parametrize("method", ["exact", "sampled"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_direct_derivatives_equal_autograd(name: str, method: str) -> None:
    center = (torch.randn(100, dtype=torch.float64) * 2).requires_grad_()
    scale = (torch.randn(100, dtype=torch.float64) * 2).requires_grad_()
    zero = torch.zeros_like(center)
    mean, var = proxy_moments(scale, center, zero, zero, name, method=method)
    grads = [
        torch.autograd.grad(m.sum(), p, retain_graph=True, allow_unused=True)[0]
        for m in (mean, var)
        for p in (center, scale)
    ]
    expected = [mean, var] + [zero if g is None else g for g in grads]
    direct = moment_derivatives(center, scale, resolve_activation(name), method=method)
    torch.testing.assert_close(list(direct), [e.detach() for e in expected], rtol=1e-7, atol=2e-8)


def test_relu_in_a_program_has_the_same_moments_and_gradients() -> None:
    given, found = [p.double().requires_grad_() for p in grid()], []
    for program in (False, True):
        with plain_operators() if program else contextlib.nullcontext():
            mean, variance = proxy_moments(*given, "relu")
        by_mean = torch.autograd.grad(mean.sum(), given, retain_graph=True)
        found.append((mean, variance, *by_mean, *torch.autograd.grad(variance.sum(), given)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("m", "s"), [(0.3, 1.2), (-2.5, 0.8), (4.0, -0.5), (-0.1, -3.0)])
def test_relus_derivatives_against_fifty_digits(m: float, s: float) -> None:
    def moments(m, s):  # type: ignore[no-untyped-def]
        s = abs(s)
        mean = m * mpmath.ncdf(m / s) + s * mpmath.npdf(m / s)
        second = (m**2 + s**2) * mpmath.ncdf(m / s) + m * s * mpmath.npdf(m / s)
        return mean, second - mean**2

    for dtype, rel in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        at = torch.tensor([[m], [s]], dtype=dtype)
        given = [mpmath.mpf(it.item()) for it in at]
        with mpmath.workdps(50):
            expected = [*moments(*given)] + [
                mpmath.diff(lambda *p, i=which: moments(*p)[i], given, by)
                for which in (0, 1)
                for by in ((1, 0), (0, 1))
            ]
        for one, value in zip(relu_moments(*at), expected):
            assert one.item() == pytest.approx(float(value), rel=rel, abs=rel / 10)
