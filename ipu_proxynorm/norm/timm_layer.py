"""Our norms as timm's ``norm_layer``: a unit is told what timm tells its BatchNormAct2d."""

from __future__ import annotations

import functools
import importlib
from typing import Any, Callable, Mapping, Optional, Union

from torch import nn

from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.convert.activations import of_module
from ipu_proxynorm.norm.create import create_norm_act
from ipu_proxynorm.norm.modules import NormAct
from ipu_proxynorm.norm.spec import NormSpec, parse_norm_spec

#: Of an ``act_layer`` that a network does not pass: it applies its activations by itself.
_APART: Any = object()
#: timm's list of the norms to which it passes a network's activation.
_TOLD = "_NORM_ACT_REQUIRES_ARG"


def timm_norm_layer(spec: Union[str, NormSpec], **options: Any) -> Callable[..., NormAct]:
    """Return ``norm_layer`` for ``timm.create_model``.

    Networks whose norms apply the activation themselves (EfficientNet, MobileNet, RegNet, ByobNet,
    DenseNet, ResNetV2, ...) get units of norm and activation, each block with its own activation.
    Others (ResNet) call their activations apart and get norms alone; Proxy Norm has no place in
    these, and is refused: `convert_norms` converts such a network whole.

    Args:
        spec: norm spec, such as ``gn4+pn``.
        options: keywords of `create_norm_act`, e.g. ``eps=1e-3``. They stand over what timm passes.

    Raises:
        ValueError: unknown spec, or ``+ws``, which is for convolutions.
        ImportError: timm is not installed, or is a version that does not tell norms of others which
            activation follows.

    Source: ``timm/layers/create_norm_act.py``, ``timm/layers/norm_act.py`` of timm 1.0.
    """
    parsed = parse_norm_spec(spec)
    if parsed.weight_standardization:
        raise ValueError(f"norm spec '{parsed}': +ws is for convolutions, which timm makes itself")
    told = getattr(importlib.import_module("timm.layers.create_norm_act"), _TOLD, None)
    if told is None:
        raise ImportError("timm_norm_layer needs timm 1.0; convert_norms takes networks of any")
    told.add(_unit)
    return functools.partial(_unit, spec=parsed, options=options)


def _unit(
    num_channels: int,
    eps: float = 1e-5,
    momentum: float = 0.1,
    affine: bool = True,
    track_running_stats: bool = True,
    apply_act: bool = True,
    act_layer: Any = _APART,
    act_kwargs: Optional[Mapping[str, Any]] = None,
    inplace: bool = True,
    drop_layer: Optional[Callable[[], nn.Module]] = None,
    device: Any = None,
    dtype: Any = None,
    *,
    spec: NormSpec,
    options: Mapping[str, Any],
) -> NormAct:
    """Return one unit; the arguments are those of timm's BatchNormAct2d.

    Raises:
        ValueError: an argument asks for what our units do not have.
    """
    if not affine or not track_running_stats:
        raise ValueError("timm_norm_layer: our norms have a scale, a shift and running statistics")
    if drop_layer is not None and not isinstance(drop_layer(), nn.Identity):
        raise ValueError(
            "timm_norm_layer: our units have no room for DropBlock between norm and activation; "
            "set drop_block_rate=0"
        )
    activation = None if act_layer is _APART else _activation(act_layer, act_kwargs or {})
    if act_layer is _APART and apply_act and spec.proxy:
        raise ValueError(
            f"norm_layer={spec}: this network calls its norms without their activations, where "
            f"Proxy Norm has no place; make it as timm does, then convert_norms(model, '{spec}')"
        )
    given = {"eps": eps, "momentum": momentum, "device": device, "dtype": dtype, **options}
    return create_norm_act(spec, num_channels, activation, apply_act=apply_act, **given)


def _activation(act_layer: Any, arguments: Mapping[str, Any]) -> Optional[Activation]:
    """Return the activation that timm would apply; None: none."""
    create = importlib.import_module("timm.layers").create_act_layer
    module = create(act_layer, **{**arguments, "inplace": False})
    if module is None or isinstance(module, nn.Identity):
        return None
    activation = of_module(module, {})
    if activation is None:
        raise ValueError(
            f"timm_norm_layer: {type(module).__name__} is not known as an element-wise activation "
            f"without parameters"
        )
    return activation
