from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from ipu_proxynorm.norm import Conv2d, Linear, WSConv2d, create_conv, standardize_weight


def test_filters_have_mean_zero_and_variance_one_over_fan_in() -> None:
    weight = standardize_weight(torch.randn(6, 4, 3, 3) * 2 + 1)
    torch.testing.assert_close(weight.mean((1, 2, 3)), torch.zeros(6), atol=1e-6, rtol=0)
    variance = weight.var((1, 2, 3), unbiased=False)
    torch.testing.assert_close(variance, torch.full((6,), 1 / 36), atol=1e-5, rtol=1e-4)


def test_a_spec_chooses_the_convolution() -> None:
    assert type(create_conv("gn4+pn", 3, 8, 3, padding=1)) is Conv2d
    conv = create_conv("ln+ws", 3, 8, 3, padding=1, bias=False)
    assert type(conv) is WSConv2d
    x = torch.randn(2, 3, 5, 5)
    expected = nn.functional.conv2d(x, standardize_weight(conv.weight), padding=1)
    torch.testing.assert_close(conv(x), expected)


@pytest.mark.parametrize("stride", [1, (1, 1), [1, 1], 2, (2, 2), (2, 1)])
@pytest.mark.parametrize("kernel_size", [3, 4])
def test_same_padding_makes_one_output_for_each_stride(stride: Any, kernel_size: int) -> None:
    """Without a stride it is the padding that is asked for, however the stride is written."""
    conv = create_conv("gn4", 2, 3, kernel_size, same=True, stride=stride, padding=1)
    steps = [stride, stride] if isinstance(stride, int) else stride
    x = torch.randn(1, 2, 7, 8)
    if steps[0] == steps[1] == 1:
        expected = nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)
        torch.testing.assert_close(conv(x), expected)
    else:
        sizes = [-(-size // step) for size, step in zip(x.shape[2:], steps)]
        assert list(conv(x).shape[2:]) == sizes


def test_the_standardized_weight_ignores_scale_and_offset_of_a_filter() -> None:
    weight = torch.randn(6, 4, 3, 3)
    moved = weight * torch.rand(6, 1, 1, 1).add(0.5) + torch.randn(6, 1, 1, 1)
    torch.testing.assert_close(
        standardize_weight(moved), standardize_weight(weight), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("layer", [Conv2d(3, 4, 1), WSConv2d(3, 4, 1), Linear(3, 4)])
def test_layers_compute_in_their_inputs_type(layer: nn.Module) -> None:
    """On meta tensors, by whose types PopTorch infers those of a program."""
    layer = copy.deepcopy(layer).to("meta")
    shape = (2, 3) if isinstance(layer, nn.Linear) else (2, 3, 5, 5)
    for weights in (torch.float16, torch.float32):
        for activations in (torch.float16, torch.float32):
            out = layer.to(weights)(torch.empty(shape, dtype=activations, device="meta"))
            assert out.dtype == activations
            gradients = torch.autograd.grad(out.sum(), list(layer.parameters()))
            assert {g.dtype for g in gradients} == {weights}
