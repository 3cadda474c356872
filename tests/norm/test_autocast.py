"""Under autocast the moments stay float32: what is left is the rounding of the tensors."""

from __future__ import annotations

import itertools
from typing import List

import pytest
import torch
from torch import Tensor, nn

from ipu_proxynorm.norm import create_norm_act, plain_operators, proxy_moments, share_moments

ACTIVATIONS = ("relu", "silu", "gelu", "tanh", "hardswish", "leaky_relu", "mish", "sigmoid")
TYPES = (torch.bfloat16, torch.float16)


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Return autocast on the CPU; torch 2.0 has bfloat16 there only."""
    try:
        context = torch.autocast("cpu", dtype=dtype)
    except RuntimeError:
        pytest.skip("torch does not have it")
    if dtype == torch.float16 and not context._enabled:
        pytest.skip("this torch has no float16 autocast on a CPU")
    return context


def scrambled(act: str, spec: str = "gn4+pn", **options: object) -> nn.Module:
    unit = create_norm_act(spec, 12, act, **options)
    for parameter in unit.parameters():
        nn.init.uniform_(parameter, 0.2, 0.9)
    return unit


def gradients(unit: nn.Module, x: Tensor, factor: Tensor) -> List[Tensor]:
    x = x.detach().clone().requires_grad_()
    unit.zero_grad()
    out = unit(x)
    (out.float() * factor).sum().backward()
    return [out.detach(), x.grad, *(p.grad.clone() for p in unit.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_a_float32_input_gives_bit_for_bit_what_it_gives_without(
    act: str, dtype: torch.dtype
) -> None:
    for recompute, spec in itertools.product((False, True), ("gn4+pn", "ln+pn")):
        unit, x = scrambled(act, spec, recompute=recompute), torch.randn(2, 12, 5, 5)
        factor = torch.randn(2, 12, 5, 5)
        right = gradients(unit, x, factor)
        with autocast(dtype):
            inside = gradients(unit, x, factor)  # the backward pass, too
        for got, expected in zip(inside, right):
            assert got.dtype == torch.float32
            assert torch.equal(got, expected)


@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_after_a_convolution_only_tensors_are_rounded(act: str, dtype: torch.dtype) -> None:
    unit, x = scrambled(act), torch.randn(2, 3, 5, 5)
    convolution, factor = nn.Conv2d(3, 12, 1), torch.randn(2, 12, 5, 5)
    with autocast(dtype):
        y = convolution(x)
        got = gradients(unit, y, factor)
    assert y.dtype == got[0].dtype == got[1].dtype == dtype
    right = gradients(unit, y.float(), factor)
    rounding = torch.finfo(dtype).eps
    smooth = act in ("silu", "gelu", "tanh", "mish", "sigmoid")  # no jump in their derivatives
    for value, expected in list(zip(got, right))[: None if smooth else 1]:
        assert (value.float() - expected).norm() <= 4 * rounding * expected.norm()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in unit.parameters())


@pytest.mark.parametrize("act", ["relu", "silu", "hardswish"])
def test_other_ways_to_the_moments(act: str) -> None:
    unit, x = scrambled(act), torch.randn(2, 12, 5, 5)
    right, expected = unit(x), unit.moments()  # type: ignore[operator]
    with autocast(torch.bfloat16):
        for got, known in zip(proxy_moments(*unit.moment_parameters, act), expected):  # type: ignore[misc]
            assert torch.equal(got, known)
        with plain_operators():
            torch.testing.assert_close(unit(x), right, rtol=1e-5, atol=1e-5)
        network = nn.Sequential(unit)
        share_moments(network)
        torch.testing.assert_close(network(x), right, rtol=1e-6, atol=1e-6)
        with plain_operators():
            torch.testing.assert_close(network(x), right, rtol=1e-5, atol=1e-5)


def test_training_under_autocast_is_near_training_without() -> None:
    torch.manual_seed(0)
    losses = []
    data, target = torch.randn(8, 3, 8, 8), torch.randn(8, 4)
    for context in (None, autocast(torch.bfloat16)):
        torch.manual_seed(1)
        net = nn.Sequential(
            *(nn.Conv2d(3, 12, 3), create_norm_act("gn4+pn", 12, "silu")),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)),
        )
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(20):
            with context or torch.autocast("cpu", enabled=False):
                loss = (net(data).float() - target).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
