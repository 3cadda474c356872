"""Norm and activation as one replaceable module, without Proxy Norm."""

from __future__ import annotations

import math
from typing import Any, Dict, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ipu_proxynorm.norm.activations import Activation, ActivationLike, resolve_activation
from ipu_proxynorm.norm.execution import may_use_custom_backward
from ipu_proxynorm.norm.functional import check_channels, group_norm, native_float16
from ipu_proxynorm.norm.grouping import GROUPINGS, check_grouping
from ipu_proxynorm.norm.scripting import Unscriptable
from ipu_proxynorm.norm.spec import NormSpec, parse_norm_spec

ActLayer = Optional[ActivationLike]
_GROUPING = "channel_grouping"


class ActOnly(Unscriptable, nn.Module):
    """No norm: the activation alone, so that ``none`` is a norm like the others."""

    def __init__(self, num_features: int, act_layer: ActLayer = "relu", *, apply_act: bool = True):
        super().__init__()
        self.num_features = num_features
        self.activation = unit_activation(act_layer, apply_act)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to x (N, C, *)."""
        return self.activation(x)

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        return f"{self.num_features}, act={self.activation.name}"


class BatchNormAct(Unscriptable, _BatchNorm):
    """Batch Norm and activation; parameters and buffers are named as ``torch.nn.BatchNorm2d``'s."""

    def __init__(
        self,
        num_features: int,
        act_layer: ActLayer = "relu",
        *,
        apply_act: bool = True,
        eps: float = 1e-5,
        momentum: float = 0.1,
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__(num_features, check_eps("eps", eps), momentum, device=device, dtype=dtype)
        self.activation = unit_activation(act_layer, apply_act)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of shape (N, C, *), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel of the input (N, C, *) over the micro-batch, then activate."""
        if not native_float16(input) and may_use_custom_backward(input):
            return self.forward(input.float()).to(input.dtype)
        return self.activation(super().forward(input))

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        return f"{super().extra_repr()}, act={self.activation.name}"


class GroupNormAct(Unscriptable, nn.Module):
    """Group Norm (Layer Norm and Instance Norm are its extremes) and activation.

    Parameters: ``weight`` γ and ``bias`` β, both (C,). Where the way channels are grouped matters,
    the state dict says it under ``channel_grouping`` (0 contiguous, 1 strided).
    """

    weight: nn.Parameter
    bias: Optional[nn.Parameter]

    def __init__(
        self,
        num_features: int,
        act_layer: ActLayer = "relu",
        *,
        spec: Union[str, NormSpec] = "ln",
        apply_act: bool = True,
        shift: bool = True,
        eps: float = 1e-5,
        channel_grouping: str = "contiguous",
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        self.spec = parse_norm_spec(spec)
        self.num_features = num_features
        self.num_groups = self.spec.groups_for(num_features)
        self.eps = check_eps("eps", eps)
        self.channel_grouping = check_grouping(channel_grouping)
        self.activation = unit_activation(act_layer, apply_act)
        self.weight = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        if shift:
            self.bias = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ to 1 and everything else (β, β̃, γ̃) to 0."""
        for name, parameter in self.named_parameters(recurse=False):
            nn.init.constant_(parameter, 1.0 if name == "weight" else 0.0)

    @property
    def grouping_matters(self) -> bool:
        """Whether contiguous and strided grouping differ: not for one group or one channel each."""
        return 1 < self.num_groups < self.num_features

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and activate x (N, C, *)."""
        check_channels(x, self.num_features)
        if not native_float16(x) and may_use_custom_backward(x):
            return self.forward(x.float()).to(x.dtype)
        y = group_norm(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            self.eps,
            grouping=self.channel_grouping,
        )
        return self.activation(y)

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        shift = "" if self.bias is not None else ", shift=False"
        grouping = f", {self.channel_grouping} groups" if self.grouping_matters else ""
        return (
            f"{self.num_features}, {self.spec}, act={self.activation.name}, "
            f"eps={self.eps}{grouping}{shift}"
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.grouping_matters:
            destination[prefix + _GROUPING] = torch.tensor(GROUPINGS.index(self.channel_grouping))

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # PyTorch's own Group Norm does not say: its groups are contiguous.
        stated = GROUPINGS[int(state_dict.pop(prefix + _GROUPING, 0))]
        if self.grouping_matters and stated != self.channel_grouping:
            raise ValueError(
                f"'{prefix}{_GROUPING}' of the state dict is {stated}, but this layer's is "
                f"{self.channel_grouping}: create it with channel_grouping='{stated}', or convert "
                "the weights of the network with regroup_channels"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def unit_activation(act_layer: ActLayer, apply_act: bool = True) -> Activation:
    """Return the activation of a unit: what it is told, the identity where none is applied.

    Raises:
        ValueError: an unknown name, or a module that holds or draws something: within a unit it
            would be neither trained, moved nor saved, and would not be told of evaluation.
        TypeError: neither a name nor callable.
    """
    activation = resolve_activation(
        act_layer if apply_act and act_layer is not None else "identity"
    )
    module = activation.function
    if not isinstance(module, nn.Module):
        return activation
    held = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    draws = any(isinstance(inner, (nn.RReLU, _DropoutNd)) for inner in module.modules())
    if held or draws:
        what = f"holds '{held[0]}'" if held else "draws random numbers in training"
        raise ValueError(
            f"activation {type(module).__name__} {what}: expected an element-wise function without "
            "parameters, buffers and random numbers, such as leaky_relu, or act_layer=None and the "
            "activation behind the unit"
        )
    return activation


def check_eps(name: str, eps: float) -> float:
    """Return what is added to a variance, if it can be.

    Raises:
        ValueError: it is negative, or no number.
    """
    if not 0 <= eps < math.inf:
        raise ValueError(f"{name}={eps}: expected 0 or more, as it is added to a variance")
    return eps
