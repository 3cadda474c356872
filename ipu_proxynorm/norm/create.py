"""Units by their norm spec: which class each kind of norm is made of, and with what."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, Dict, Union

from ipu_proxynorm.norm.modules import NormAct, ProxyNormAct
from ipu_proxynorm.norm.spec import NormSpec, parse_norm_spec
from ipu_proxynorm.norm.units import ActLayer, ActOnly, BatchNormAct, GroupNormAct


@dataclasses.dataclass(frozen=True)
class NormOptions:
    """What `create_norm_act` was told beside spec, channels and activation; see there."""

    eps: float
    momentum: float
    proxy_eps: float
    method: str
    n: int
    recompute: bool
    channel_grouping: str


Unit = Callable[[NormSpec, int, ActLayer, bool, NormOptions, Dict[str, Any]], Any]


def _no_norm(
    spec: NormSpec,
    num_features: int,
    act_layer: ActLayer,
    apply_act: bool,
    options: NormOptions,
    factory: Dict[str, Any],
) -> NormAct:
    return ActOnly(num_features, act_layer, apply_act=apply_act)


def _batch_norm(
    spec: NormSpec,
    num_features: int,
    act_layer: ActLayer,
    apply_act: bool,
    options: NormOptions,
    factory: Dict[str, Any],
) -> NormAct:
    momentum = options.momentum
    return BatchNormAct(
        num_features, act_layer, apply_act=apply_act, eps=options.eps, momentum=momentum, **factory
    )


def _grouped_norm(
    spec: NormSpec,
    num_features: int,
    act_layer: ActLayer,
    apply_act: bool,
    options: NormOptions,
    factory: Dict[str, Any],
) -> NormAct:
    """Return Layer, Group or Instance Norm; with Proxy Norm where an activation follows."""
    if spec.proxy and apply_act and act_layer is not None:
        return ProxyNormAct(
            num_features,
            act_layer,
            spec=spec,
            eps=options.eps,
            proxy_eps=options.proxy_eps,
            method=options.method,
            n=options.n,
            recompute=options.recompute,
            channel_grouping=options.channel_grouping,
            **factory,
        )
    return GroupNormAct(
        num_features,
        act_layer,
        spec=spec,
        apply_act=apply_act,
        shift=not spec.proxy,
        eps=options.eps,
        channel_grouping=options.channel_grouping,
        **factory,
    )


#: How the unit of each of `spec.KINDS` is made.
NORM_UNITS: Dict[str, Unit] = {
    "none": _no_norm,
    "bn": _batch_norm,
    "in": _grouped_norm,
    "ln": _grouped_norm,
    "gn": _grouped_norm,
}


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
    recompute: bool = False,
    channel_grouping: str = "contiguous",
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
        eps: the ε of the norm.
        momentum: the momentum of Batch Norm's running statistics.
        proxy_eps: ε of Proxy Norm.
        method: how the proxy's moments are taken: ``exact`` or ``sampled``.
        n: number of quantiles of ``sampled``.
        recompute: let Proxy Norm's backward pass compute the pre-activation again, not keep it.
        channel_grouping: ``contiguous`` (PyTorch's) or ``strided`` (faster on an IPU) groups.
        device: the device of the parameters.
        dtype: the data type of the parameters.

    Raises:
        ValueError: unknown spec or activation, or groups that do not divide the channels.

    """
    parsed = parse_norm_spec(spec)
    options = NormOptions(eps, momentum, proxy_eps, method, n, recompute, channel_grouping)
    factory = {"device": device, "dtype": dtype}
    if act_layer is None:
        apply_act = False
    return NORM_UNITS[parsed.kind](parsed, num_features, act_layer, apply_act, options, factory)
