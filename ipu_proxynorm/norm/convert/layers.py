"""Norm modules of other people's networks: what each is, and our unit with its parameters."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.convert.activations import Known, of_module
from ipu_proxynorm.norm.create import create_norm_act
from ipu_proxynorm.norm.modules import NormAct, ProxyNormAct
from ipu_proxynorm.norm.spec import NormSpec
from ipu_proxynorm.norm.units import ActOnly, BatchNormAct, GroupNormAct

_BASES = (_BatchNorm, _InstanceNorm, nn.GroupNorm, GroupNormAct)
# timm's, by name: timm is not imported. They compute what their base does, then drop, then act.
_TIMM_FUSED = ("BatchNormAct2d", "SyncBatchNormAct", "GroupNormAct", "GroupNorm1Act")
_TIMM_PLAIN = ("GroupNorm", "GroupNorm1")
_WHY_NOT = {
    "LayerNorm": "normalizes the last dimensions, not the channels of (N, C, *)",
    "LayerNorm2d": "normalizes each position over its channels",
    "LayerNormAct2d": "normalizes each position over its channels",
    "RMSNorm": "normalizes the last dimensions, not the channels of (N, C, *)",
    "FrozenBatchNorm2d": "is frozen: its scale and shift are no parameters",
    "FrozenBatchNormAct2d": "is frozen: its scale and shift are no parameters",
}


@dataclasses.dataclass(frozen=True)
class NormLayer:
    """A norm found in a network.

    Attributes:
        module: the norm.
        channels: its C.
        activation: what it applies itself, as timm's fused modules and our units do; None: none.
        refusal: why it cannot be converted; empty when it can.

    """

    module: nn.Module
    channels: int = 0
    activation: Optional[Activation] = None
    refusal: str = ""


def norm_layer(module: nn.Module, known: Known) -> Optional[NormLayer]:
    """Return what is known of a norm; None: the module is no norm."""
    if isinstance(module, torch.jit.ScriptModule):
        if "Norm" not in str(getattr(module, "original_name", "")):
            return None
        return NormLayer(module, refusal="is TorchScript, and compiled already")
    if not isinstance(module, _BASES):
        return NormLayer(module, refusal=_why_not(module)) if _named_norm(module) else None
    activation, refusal = _activation_within(module, known)
    if activation is not None and activation.name == "identity":
        activation = None
    refusal = _hidden(module) or refusal
    if any(nn.parameter.is_lazy(p) for p in module.parameters()):
        refusal = "does not know its channels yet: call the network once before"
    named = "num_channels" if isinstance(module, nn.GroupNorm) else "num_features"
    return NormLayer(module, int(getattr(module, named)), activation, refusal)


def _activation_within(module: nn.Module, known: Known) -> Tuple[Optional[Activation], str]:
    """Return the activation that a norm applies itself, and why its class cannot be converted."""
    if isinstance(module, (BatchNormAct, GroupNormAct)):
        plain = type(module) in (BatchNormAct, GroupNormAct, ProxyNormAct)
        return module.activation, "" if plain else "leaves part of its work to another module"
    if _from_timm(module, _TIMM_FUSED):
        return _within_timms(module, known)
    if not _from_timm(module, _TIMM_PLAIN) and not _keeps_forward(module):
        return None, "computes something of its own: it overrides forward"
    return None, ""


def _within_timms(module: nn.Module, known: Known) -> Tuple[Optional[Activation], str]:
    """Return the same of one of timm's fused norms."""
    inner = module.act if isinstance(module.act, nn.Module) else nn.Identity()
    activation = None if isinstance(inner, nn.Identity) else of_module(inner, known)
    if activation is None and not isinstance(inner, nn.Identity):
        return None, f"applies {_named(inner)}, not known as an element-wise activation"
    if not isinstance(getattr(module, "drop", nn.Identity()), nn.Identity):
        return activation, "drops activations between norm and activation"
    return activation, ""


def _keeps_forward(module: nn.Module) -> bool:
    base: Any = next(
        c for c in type(module).__mro__ if c.__module__.startswith("torch.nn.modules.")
    )
    return bool(type(module).forward is base.forward)


def _from_timm(module: nn.Module, names: Tuple[str, ...]) -> bool:
    return type(module).__module__.startswith("timm.") and type(module).__name__ in names


def _hidden(module: nn.Module) -> str:
    """Return what a new module in its place would lose."""
    if has_hooks(module):
        return "has forward or backward hooks, which a new module would lose"
    if "parametrizations" in module._modules:
        return "has parametrized weights, which a new module would lose"
    return ""


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is hooked to the calls of a module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, kind, None) for kind in kinds)


def _named_norm(module: nn.Module) -> bool:
    """Whether the name of a class says norm, and nothing but activations lies within it."""
    inner = [m for m in module.modules() if m is not module]
    return (
        "Norm" in type(module).__name__
        and not isinstance(module, ActOnly)
        and not any(list(m.parameters(recurse=False)) for m in inner)
    )


def _why_not(module: nn.Module) -> str:
    name = type(module).__name__
    return _WHY_NOT.get(name, f"is a norm of another kind: {name} is not known")


def _named(module: nn.Module) -> str:
    return type(module).__name__


def create_unit(
    layer: NormLayer,
    spec: NormSpec,
    activation: Optional[Activation],
    eps: Optional[float],
    options: Dict[str, Any],
    written: bool = False,
) -> NormAct:
    """Return our unit in the place of a norm, with the norm's own parameters where it has them.

    ``weight`` and ``bias`` are the very Parameters of the norm; converting Batch Norm to Batch
    Norm also keeps its buffers, momentum and whatever it was told to go without. Proxy Norm's
    backward pass reads its output: where the network writes into that in place, it gets a copy.
    """
    old = layer.module
    like = next((p for p in [*old.parameters(), *old.buffers()] if p.is_floating_point()), None)
    unit = create_norm_act(
        spec,
        layer.channels,
        activation,
        eps=getattr(old, "eps", 1e-5) if eps is None else eps,
        device=None if like is None else like.device,
        dtype=None if like is None else like.dtype,
        **options,
    )
    own = dict(old.named_parameters(recurse=False))
    if isinstance(unit, BatchNormAct) and isinstance(old, _BatchNorm):
        unit._parameters.update({"weight": old.weight, "bias": old.bias})
        unit._buffers.update(old._buffers)
        for name in ("affine", "track_running_stats", "momentum"):
            setattr(unit, name, getattr(old, name))
    else:
        for name in dict(unit.named_parameters(recurse=False)):
            if name in own and own[name].shape == unit._parameters[name].shape:  # type: ignore[union-attr]
                unit._parameters[name] = own[name]
    if written and isinstance(unit, ProxyNormAct):
        unit.register_forward_hook(_copy)
    return unit.train(old.training)


def _copy(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.clone()
