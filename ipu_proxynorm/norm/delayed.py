"""Proxy Norm that hands its scale on, for a layer behind it that can apply it more cheaply."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from ipu_proxynorm.norm.execution import may_use_custom_backward
from ipu_proxynorm.norm.functional import group_norm, native_float16, per_channel
from ipu_proxynorm.norm.fused import Prepared
from ipu_proxynorm.norm.modules import ProxyNormAct


class DelayedScaleProxyNormAct(ProxyNormAct):
    """Group Norm, activation and Proxy Norm without its last step, the scale.

    Constructor, parameters and state dict are `ProxyNormAct`'s. Squeeze-and-excite behind it
    multiplies with one number per image and channel anyway: the scale goes there, as in Graphcore's
    EfficientNet, and is not multiplied with every pixel.
    """

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return φ(γ y + β) − E, shape and dtype of x (N, C, *), and 1 / sqrt(Var + ε), (C,).

        Their product is the output of `ProxyNormAct`. Plain operators on every device.
        """
        shared, self._shared = self._shared, None
        mean, var = self.moments() if shared is None or isinstance(shared, Prepared) else shared
        return self._centered(x, mean), torch.rsqrt(var + self.proxy_eps)

    def _centered(self, x: Tensor, mean: Tensor) -> Tensor:
        if not native_float16(x) and may_use_custom_backward(x):
            return self._centered(x.float(), mean).to(x.dtype)
        z = self.activation(
            group_norm(
                x,
                self.num_groups,
                self.weight,
                self.bias,
                self.eps,
                grouping=self.channel_grouping,
            )
        )
        # In the mean's float32: its gradient sums all that a channel holds and could overflow.
        return (z - per_channel(mean, z)).to(z.dtype)
