"""Layers that compute in their input's type; convolutions with standardized weights (``+ws``).

Their input may be a unit's output with its scale or shift `pending`: weights and bias take them.

Where activations are float16 and master weights float32 (precision 16.32), torch's own layers will
not do on an IPU: PopTorch hands them to torch 2.0, whose ``conv2d`` refuses a bias of another type
than the input, and whose ``linear`` with bias gives float32 there. Cast weights give float16.
"""

from __future__ import annotations

from typing import Any, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from ipu_proxynorm.norm.moments.gaussian import at_least_float32
from ipu_proxynorm.norm.pending import Output, read
from ipu_proxynorm.norm.scripting import Unscriptable
from ipu_proxynorm.norm.spec import NormSpec, parse_norm_spec


def standardize_weight(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Give each filter of weight (C_out, C_in, *) mean 0, variance 1/fan-in, at least in float32.

    Source: Weight Standardization (Qiao et al., 2019), scaled so that the variance of the output
    is the input's power, which a norm behind it makes irrelevant and a missing one needs.
    """
    flat = at_least_float32(weight.reshape(weight.shape[0], -1))  # (C_out, fan-in)
    centered = flat - flat.mean(1, keepdim=True)
    inv_std = torch.rsqrt(centered.square().mean(1, keepdim=True) + eps)
    scaled = centered * (inv_std * flat.shape[1] ** -0.5)
    return scaled.view(weight.shape).to(weight.dtype)


def same_padding(size: int, kernel: int, stride: int) -> Tuple[int, int]:
    """Return the zeros before and behind one dimension, as TensorFlow's ``SAME`` has them.

    As few as make ceil(size / stride) outputs, the odd one behind.
    """
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _Conv2d(Unscriptable, nn.Conv2d):
    same = False  # padding as TensorFlow's SAME, instead of the constructor's

    def _convolved(self, input: Output, weight: Tensor) -> Tensor:
        padded = not takes_shift(self)
        x, weight, bias = read(input, weight, self.bias, self.groups, padded=padded)
        return self._conv_forward(self._padded(x), weight, bias)

    def _padded(self, x: Tensor) -> Tensor:
        if not self.same:
            return x
        sizes, strides = self.kernel_size, self.stride
        top, bottom = same_padding(x.shape[2], sizes[0], strides[0])
        left, right = same_padding(x.shape[3], sizes[1], strides[1])
        return F.pad(x, (left, right, top, bottom))


class Conv2d(_Conv2d):
    """``torch.nn.Conv2d`` that computes in its input's type; same state dict."""

    def forward(self, input: Output) -> Tensor:
        """Convolve the input (N, C_in, H, W)."""
        return self._convolved(input, self.weight)


class WSConv2d(_Conv2d):
    """``torch.nn.Conv2d`` that convolves with its standardized weight; same state dict."""

    def forward(self, input: Output) -> Tensor:
        """Convolve the input (N, C_in, H, W)."""
        return self._convolved(input, standardize_weight(self.weight))


class Linear(Unscriptable, nn.Linear):
    """``torch.nn.Linear`` that computes in its input's type; same state dict."""

    def forward(self, input: Output) -> Tensor:
        """Transform the input (*, C_in) to (*, C_out)."""
        return F.linear(*read(input, self.weight, self.bias))


def takes_shift(layer: nn.Module) -> bool:
    """Return whether a layer can make a bias of a shift: a product, or nothing is padded."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        padding = layer.padding
        none = padding == "valid" if isinstance(padding, str) else not any(padding)
        return none and not getattr(layer, "same", False)
    return isinstance(layer, nn.Linear)


def create_conv(
    spec: Union[str, NormSpec],
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    same: bool = False,
    **kwargs: Any,
) -> nn.Conv2d:
    """Return the convolution of a norm spec: standardized under ``+ws``, plain otherwise.

    With ``same``, strided convolutions are padded as TensorFlow's ``SAME`` (`same_padding`), others
    as the further arguments say, which are ``torch.nn.Conv2d``'s.
    """
    standardized = parse_norm_spec(spec).weight_standardization
    layer = WSConv2d if standardized else Conv2d
    same = same and _pair(kwargs.get("stride", 1)) != (1, 1)
    if same:
        kwargs = {**kwargs, "padding": 0}
    created = layer(in_channels, out_channels, kernel_size, **kwargs)
    created.same = same
    return created
