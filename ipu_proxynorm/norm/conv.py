"""Convolutions whose weights are standardized, for the norm specs that ask for it (``+ws``)."""

from __future__ import annotations

from typing import Any, Union

import torch
from torch import Tensor, nn

from ipu_proxynorm.norm.spec import NormSpec, parse_norm_spec


def standardize_weight(weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Give each filter of weight (C_out, C_in, *) mean 0 and variance 1/fan-in, in float32.

    Source: Weight Standardization (Qiao et al., 2019), scaled so that the variance of the output
    is the input's power, which a norm behind it makes irrelevant and a missing one needs.
    """
    flat = weight.reshape(weight.shape[0], -1).float()  # (C_out, fan-in)
    centered = flat - flat.mean(1, keepdim=True)
    inv_std = torch.rsqrt(centered.square().mean(1, keepdim=True) + eps)
    scaled = centered * (inv_std * flat.shape[1] ** -0.5)
    return scaled.view(weight.shape).to(weight.dtype)


class WSConv2d(nn.Conv2d):
    """``torch.nn.Conv2d`` that convolves with its standardized weight; same state dict."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve the input (N, C_in, H, W)."""
        return self._conv_forward(input, standardize_weight(self.weight), self.bias)


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
    layer = WSConv2d if standardized else nn.Conv2d
    return layer(in_channels, out_channels, kernel_size, **kwargs)
