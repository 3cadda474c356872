"""What the networks share: how they build their layers, and how they describe themselves."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional

from torch import Tensor, nn
from torch.nn import functional as F

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm import create_conv, create_norm_act, parse_norm_spec, spatial_mean
from ipu_proxynorm.norm.pending import Output


class Network(nn.Module):
    """A network that knows where it can be cut into pipeline stages."""

    def split_points(self) -> List[str]:
        """Return, in order, the layers at which exactly one tensor crosses: pipeline boundaries."""
        raise NotImplementedError

    def split_aliases(self) -> Dict[str, str]:
        """Return the names that published configurations give to split points, with ours."""
        return {}

    def __prepare_scriptable__(self) -> Any:
        """Refuse to be scripted: forwards go through blocks by name, and read pending outputs."""
        raise UserError(
            f"torch.jit.script does not take {type(self).__name__}: use torch.jit.trace, of "
            "ipu_proxynorm.norm.fold_proxy_norm(model) for a graph without proxies"
        )


@dataclasses.dataclass(frozen=True)
class Layers:
    """How a network builds its layers.

    Attributes:
        norm: norm spec of every norm.
        act_layer: activation behind every norm that has one.
        eps: the ε of every norm, added to the variance.
        padding: of strided convolutions: ``symmetric``, or ``same``, TensorFlow's.
        proxy_method: how Proxy Norm's moments are taken: ``exact`` or ``sampled``.
    """

    norm: str
    act_layer: str = "relu"
    eps: float = 1e-5
    padding: str = "symmetric"
    proxy_method: str = "exact"

    def norm_act(self, channels: int) -> nn.Module:
        """Return norm and activation as one unit."""
        return create_norm_act(
            self.norm, channels, self.act_layer, eps=self.eps, method=self.proxy_method
        )

    def norm_only(self, channels: int) -> nn.Module:
        """Return a norm that no activation follows: under ``+pn`` with its scale alone."""
        return create_norm_act(self.norm, channels, apply_act=False, eps=self.eps)

    def activation(self, channels: int) -> nn.Module:
        """Return the activation by itself."""
        return create_norm_act("none", channels, self.act_layer)

    def conv(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> nn.Conv2d:
        """Return a convolution without bias that keeps height and width, but for the stride."""
        return create_conv(
            self.norm,
            inputs,
            outputs,
            kernel,
            same=self.padding == "same",
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        )


def initialize_convolutions(network: nn.Module) -> None:
    """He-initialise convolutions: fan out, or fan in where they are grouped.

    A group reads few channels and writes few; PyTorch's fan out counts those of all groups.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if module.groups == 1:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def zero_branch(last: nn.Module, conv: nn.Conv2d, norm: str) -> None:
    """Let a residual branch start at zero: the scale of its last norm, else its last convolution.

    Args:
        last: what the branch ends in, a norm or a convolution.
        conv: the last convolution of the branch.
        norm: norm spec of the network.

    Raises:
        UserError: nothing can be zero: no norm ends the branch, and weights are standardized.
    """
    scale: Optional[Tensor] = None if last is conv else getattr(last, "weight", None)
    if scale is None and parse_norm_spec(norm).weight_standardization:
        raise UserError(
            f"zero_init_last=True: no norm with a scale ends the residual branches, and the "
            f"standardized weights of norm={norm} cannot start at zero; leave one of the two out"
        )
    nn.init.zeros_(conv.weight if scale is None else scale)


class MeanPool(nn.AdaptiveAvgPool2d):
    """The mean over space, (N, C, 1, 1), which takes scale and shift of the unit before it."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, input: Output) -> Tensor:
        """Return the mean of an output (N, C, H, W)."""
        return spatial_mean(input)


class DropPath(nn.Module):
    """Drop the residual branch of some images in training, and scale the others up to make up.

    Huang et al., *Deep Networks with Stochastic Depth*, 2016; EfficientNet's drop-connect.

    Args:
        rate: share of images whose branch is dropped.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return the branch x (N, C, H, W), zero for some images in training."""
        if not self.training or self.rate == 0:
            return x
        kept = x.new_ones(x.shape[0], 1, 1, 1)
        return x * F.dropout(kept, self.rate, training=True)  # 0 or 1 / (1 - rate)

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        return f"{self.rate:.4g}"
