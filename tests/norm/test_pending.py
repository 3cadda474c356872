"""What a unit leaves to its readers: the same function, and the plain form where it is cheaper."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ipu_proxynorm.norm import (
    Conv2d,
    Linear,
    Pending,
    create_norm_act,
    finished,
    hand_on_to,
    plain_operators,
    spatial_mean,
)
from ipu_proxynorm.norm.conv import WSConv2d
from ipu_proxynorm.norm.pending import scaled_weight


def pending(channels=8, shift=False, dtype=torch.float64):
    """Return a value (2, channels, 5, 5) with its scale, and its shift if asked for."""
    values = torch.randn(2, channels), torch.randn(2, channels, 5, 5)
    (scale, shifts), value = values[0].to(dtype), values[1].to(dtype)
    return Pending(value, scale, shifts if shift else None)


@pytest.mark.parametrize("layer", [Conv2d, WSConv2d])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "groups": 4, "stride": 2},
        {"kernel_size": 5, "padding": 2, "groups": 8, "bias": False},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    ],
)
def test_a_convolution_takes_the_scale(layer, options):
    conv = layer(8, 16, **options).double()
    given = pending()
    torch.testing.assert_close(conv(given), conv(finished(given)), rtol=0, atol=1e-13)


@pytest.mark.parametrize("layer", [Conv2d, WSConv2d])
@pytest.mark.parametrize(
    "options",
    [{"kernel_size": 1}, {"kernel_size": 1, "stride": 2, "bias": False}, {"kernel_size": 3}],
)
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_convolution_without_padding_takes_the_shift_as_a_bias(layer, options, groups, scaled):
    conv = layer(8, 16, groups=groups, **options).double()
    given = pending(shift=True) if scaled else pending(shift=True)._replace(scale=None)
    torch.testing.assert_close(conv(given), conv(finished(given)), rtol=0, atol=1e-13)


def test_a_product_and_a_mean_take_the_scale():
    linear = Linear(8, 3).double()
    value, scale, _ = pending()
    rows = value[..., 0, 0]
    torch.testing.assert_close(
        linear(Pending(rows, scale)), linear(rows * scale), rtol=0, atol=1e-13
    )
    given = Pending(rows, scale, 1 + scale)
    torch.testing.assert_close(linear(given), linear(finished(given)), rtol=0, atol=1e-13)
    for shift in (False, True):
        given = pending(shift=shift)
        expected = F.adaptive_avg_pool2d(finished(given), 1)
        torch.testing.assert_close(spatial_mean(given), expected, rtol=0, atol=1e-13)


def test_zero_padding_would_not_see_a_shift():
    same = Conv2d(8, 8, 3, stride=2)
    same.same = True  # type: ignore[assignment]
    for conv in (Conv2d(8, 8, 3, padding=1), Conv2d(8, 8, 1, padding="same"), same):
        with pytest.raises(ValueError, match="a shift is left"):
            conv.double()(pending(shift=True))


@pytest.mark.parametrize("weights", [torch.float16, torch.float32])
def test_types_are_the_weights_and_the_activations(weights):
    value, scale, _ = pending(dtype=torch.float32)
    weight = torch.randn(4, 8, 3, 3, dtype=weights, device="meta")
    assert scaled_weight(weight, scale.to("meta")).dtype == weights
    half = Pending(value.half().to("meta"), scale.to("meta"))
    conv = Conv2d(8, 4, 3).to("meta", weights)
    assert conv(half).dtype == torch.float16


def unit(act="silu", spec="gn2+pn", channels=8):
    layer = create_norm_act(spec, channels, act).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer


@pytest.mark.parametrize("act", ["relu", "relu6", "leaky_relu", "silu", "gelu"])
@pytest.mark.parametrize("shift_too", [False, True])
def test_a_unit_leaves_its_last_steps_within_a_program_only(act, shift_too):
    layer = unit(act)
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    expected = layer(x)
    before = layer.state_dict()
    readers = [] if shift_too else [Conv2d(8, 4, 3, padding=1)]
    hand_on_to(layer, *readers, shift_too=shift_too)
    assert layer.state_dict().keys() == before.keys()
    assert isinstance(layer(x), torch.Tensor)
    with plain_operators(hand_on=False):
        assert isinstance(layer(x), torch.Tensor)
    with plain_operators():
        out = layer(x)
    folds = act not in ("silu", "gelu")
    assert isinstance(out, Pending) == (shift_too or not folds)
    torch.testing.assert_close(finished(out), expected, rtol=1e-12, atol=1e-12)


def test_a_relu_leaves_its_shift_to_convolutions_that_do_not_pad():
    """So that what they read is ReLU's output, which its gradient reads: one tensor is kept."""
    layer, x = unit("relu"), torch.randn(2, 8, 5, 5, dtype=torch.float64)
    expected = layer(x)
    for readers, leaves in (
        ([Conv2d(8, 4, 1)], True),
        ([Conv2d(8, 4, 1, stride=2), WSConv2d(8, 16, 1)], True),
        ([Conv2d(8, 4, 1), Conv2d(8, 4, 3, padding=1)], False),
        ([Conv2d(8, 50, 1)], True),  # 400 weights, 200 elements
        ([Conv2d(8, 51, 1)], False),
        ([], False),
    ):
        hand_on_to(layer, *readers)
        with plain_operators():
            out = layer(x)
        assert isinstance(out, Pending) == leaves
        if isinstance(out, Pending):
            assert out.scale is None
            assert (out.value == 0).any()
            assert (out.value >= 0).all()
        torch.testing.assert_close(finished(out), expected, rtol=1e-12, atol=1e-12)
    for act in ("relu6", "leaky_relu", "hardsigmoid"):
        layer = unit(act)
        hand_on_to(layer, Conv2d(8, 4, 1))
        with plain_operators():
            assert isinstance(layer(x), torch.Tensor)


def test_weights_larger_than_what_they_read_keep_the_plain_form():
    layer = unit()
    hand_on_to(layer, Conv2d(8, 64, 3))  # 4608 weights
    with plain_operators():
        assert isinstance(layer(torch.randn(1, 8, 5, 5).double()), torch.Tensor)  # 200 elements
        assert isinstance(layer(torch.randn(1, 8, 6, 6).double()), Pending)  # 288 of 16 images
        assert isinstance(layer(torch.randn(64, 8, 5, 5).double()), torch.Tensor)


def test_other_norms_hand_nothing_on():
    for spec in ("bn", "ln", "none"):
        layer = create_norm_act(spec, 8, "silu")
        hand_on_to(layer, Conv2d(8, 8, 1))
        with plain_operators():
            assert isinstance(layer(torch.randn(2, 8, 5, 5)), torch.Tensor)
    hand_on_to(nn.Identity(), Conv2d(8, 8, 1))


@pytest.mark.parametrize("weights", [torch.float16, torch.float32])
def test_in_float16_weights_with_the_scale_round_no_worse_than_activations(weights):
    """Mean square error behind a product of exact sums, over that of scaled activations."""
    values = torch.randn(512, 512).half()
    scale = 0.5 + torch.rand(512)
    weight = torch.randn(512, 512).to(weights)
    exact = F.linear(values.double() * scale.double(), weight.double())
    plain = values * scale.half()
    found = F.linear(plain.double(), weight.half().double())
    handed = F.linear(values.double(), scaled_weight(weight, scale).half().double())
    error, handed_error = ((it - exact).square().mean() for it in (found, handed))
    assert handed_error < (0.8 if weights == torch.float32 else 1.02) * error
