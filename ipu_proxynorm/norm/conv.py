"""Layers that compute in their input's type; convolutions with standardized weights (``+ws``).

Their input may be a unit's output with its scale `pending`: the weights take it then.

Where activations are float16 and master weights float32 (precision 16.32), torch's own layers will
not do on an IPU: PopTorch hands them to torch 2.0, whose ``conv2d`` refuses a bias of another type
than the input, and whose ``linear`` with bias gives float32 there. Cast weights give float16.
"""

from __future__ import annotations

from typing import Any, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipu_proxynorm.norm.moments.gaussian import at_least_float32
from ipu_proxynorm.norm.pending import Output, as_activations, read
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


class Conv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` that computes in its input's type; same state dict."""

    def forward(self, input: Output) -> Tensor:
        """Convolve the input (N, C_in, H, W)."""
        x, weight = read(input, self.weight, self.groups)
        return self._conv_forward(x, weight, _bias(self, x))


class WSConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` that convolves with its standardized weight; same state dict."""

    def forward(self, input: Output) -> Tensor:
        """Convolve the input (N, C_in, H, W)."""
        x, weight = read(input, standardize_weight(self.weight), self.groups)
        return self._conv_forward(x, weight, _bias(self, x))


class Linear(nn.Linear):
    """``torch.nn.Linear`` that computes in its input's type; same state dict."""

    def forward(self, input: Output) -> Tensor:
        """Transform the input (*, C_in) to (*, C_out)."""
        x, weight = read(input, self.weight)
        return F.linear(x, weight, _bias(self, x))


def _bias(layer: Union[nn.Conv2d, nn.Linear], x: Tensor) -> Optional[Tensor]:
    return None if layer.bias is None else as_activations(layer.bias, x)


def create_conv(
    spec: Union[str, NormSpec],
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    **kwargs: Any,
) -> nn.Conv2d:
    """Return the convolution of a norm spec: standardized under ``+ws``, plain otherwise.

    Further arguments are ``torch.nn.Conv2d``'s.
    """
    standardized = parse_norm_spec(spec).weight_standardization
    layer = WSConv2d if standardized else Conv2d
    return layer(in_channels, out_channels, kernel_size, **kwargs)
