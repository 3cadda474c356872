"""Norm and activation as one replaceable module, for each kind of norm."""

from __future__ import annotations

from typing import Any, Optional, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ipu_proxynorm.norm.activations import ActivationLike, resolve_activation
from ipu_proxynorm.norm.functional import group_norm, group_norm_act
from ipu_proxynorm.norm.moments import METHODS, proxy_moments
from ipu_proxynorm.norm.spec import NormSpec, parse_norm_spec

ActLayer = Optional[ActivationLike]


class ActOnly(nn.Module):
    """No norm: the activation alone, so that ``none`` is a norm like the others."""

    def __init__(self, num_features: int, act_layer: ActLayer = "relu", *, apply_act: bool = True):
        super().__init__()
        self.num_features = num_features
        self.activation = resolve_activation(_chosen(act_layer, apply_act))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation to x (N, C, *)."""
        return self.activation(x)

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        return f"{self.num_features}, act={self.activation.name}"


class BatchNormAct(_BatchNorm):
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
        super().__init__(num_features, eps, momentum, device=device, dtype=dtype)
        self.activation = resolve_activation(_chosen(act_layer, apply_act))

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input of shape (N, C, *), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalize each channel of the input (N, C, *) over the micro-batch, then activate."""
        return self.activation(super().forward(input))

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        return f"{super().extra_repr()}, act={self.activation.name}"


class GroupNormAct(nn.Module):
    """Group Norm (Layer Norm and Instance Norm are its extremes) and activation.

    Parameters: ``weight`` γ and ``bias`` β, both (C,).
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
        device: Any = None,
        dtype: Any = None,
    ):
        super().__init__()
        self.spec = parse_norm_spec(spec)
        self.num_features = num_features
        self.num_groups = self.spec.groups_for(num_features)
        self.eps = eps
        self.activation = resolve_activation(_chosen(act_layer, apply_act))
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

    def forward(self, x: Tensor) -> Tensor:
        """Normalize and activate x (N, C, *)."""
        _check_channels(x, self.num_features)
        y = group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
        return self.activation(y)

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        shift = "" if self.bias is not None else ", shift=False"
        return (
            f"{self.num_features}, {self.spec}, act={self.activation.name}, eps={self.eps}{shift}"
        )


class ProxyNormAct(GroupNormAct):
    """Group Norm, activation and Proxy Norm.

    Parameters: ``weight`` γ, ``bias`` β, ``proxy_weight`` γ̃ and ``proxy_bias`` β̃, all (C,).
    """

    proxy_weight: nn.Parameter
    proxy_bias: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        act_layer: ActivationLike = "relu",
        *,
        spec: Union[str, NormSpec] = "ln+pn",
        eps: float = 1e-5,
        proxy_eps: float = 0.03,
        method: str = "exact",
        n: int = 200,
        device: Any = None,
        dtype: Any = None,
    ):
        if method not in METHODS:
            raise ValueError(f"unknown method '{method}': expected one of {', '.join(METHODS)}")
        super().__init__(num_features, act_layer, spec=spec, eps=eps, device=device, dtype=dtype)
        self.proxy_eps = proxy_eps
        self.method = method
        self.n = n
        self.proxy_weight = nn.Parameter(torch.empty_like(self.weight))
        self.proxy_bias = nn.Parameter(torch.empty_like(self.weight))
        self.reset_parameters()

    def moments(self) -> Tuple[Tensor, Tensor]:
        """Return mean and variance of the activation of the proxy variable, each (C,)."""
        return proxy_moments(
            self.weight,
            self.bias,
            self.proxy_weight,
            self.proxy_bias,
            self.activation,
            method=self.method,
            n=self.n,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, activate and proxy-normalize x (N, C, *)."""
        _check_channels(x, self.num_features)
        return group_norm_act(
            x,
            self.num_groups,
            self.weight,
            self.bias,
            self.activation,
            self.moments(),
            eps=self.eps,
            proxy_eps=self.proxy_eps,
        )

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        method = self.method if self.method == "exact" else f"{self.method}, n={self.n}"
        return f"{super().extra_repr()}, proxy_eps={self.proxy_eps}, method={method}"


NormAct = Union[ActOnly, BatchNormAct, GroupNormAct, ProxyNormAct]


def create_norm_act(
    spec: Union[str, NormSpec],
    num_features: int,
    act_layer: ActLayer = "relu",
    *,
    apply_act: bool = True,
    eps: float = 1e-5,
    momentum: float = 0.1,
    proxy_eps: float = 0.03,
    method: str = "exact",
    n: int = 200,
    device: Any = None,
    dtype: Any = None,
) -> NormAct:
    """Return norm and activation as one module for ``num_features`` channels.

    Args:
        spec: norm spec, such as ``ln+pn`` or ``gn4``; ``+ws`` is for `create_conv`.
        num_features: number of channels.
        act_layer: activation by name, module, module class or callable; None for none.
        apply_act: False where no activation follows. Proxy Norm has no place there: under ``+pn``
            the norm keeps its scale and drops its shift.
        eps: of the norm.
        momentum: of Batch Norm's running statistics.
        proxy_eps: ε of Proxy Norm.
        method: how the proxy's moments are taken: ``exact`` or ``sampled``.
        n: number of quantiles of ``sampled``.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: unknown spec or activation, or groups that do not divide the channels.

    """
    parsed = parse_norm_spec(spec)
    factory = {"device": device, "dtype": dtype}
    apply_act = apply_act and act_layer is not None
    if parsed.kind == "none":
        return ActOnly(num_features, act_layer, apply_act=apply_act)
    if parsed.kind == "bn":
        return BatchNormAct(
            num_features, act_layer, apply_act=apply_act, eps=eps, momentum=momentum, **factory
        )
    if parsed.proxy and apply_act and act_layer is not None:
        return ProxyNormAct(
            num_features,
            act_layer,
            spec=parsed,
            eps=eps,
            proxy_eps=proxy_eps,
            method=method,
            n=n,
            **factory,
        )
    return GroupNormAct(
        num_features,
        act_layer,
        spec=parsed,
        apply_act=apply_act,
        shift=not parsed.proxy,
        eps=eps,
        **factory,
    )


def _chosen(act_layer: ActLayer, apply_act: bool) -> ActivationLike:
    return act_layer if apply_act and act_layer is not None else "identity"


def _check_channels(x: Tensor, num_features: int) -> None:
    if x.dim() < 2 or x.shape[1] != num_features:
        raise ValueError(f"expected an input of shape (N, {num_features}, *), got {tuple(x.shape)}")
