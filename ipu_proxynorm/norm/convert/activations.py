"""Which modules and functions of other people's networks are activations, and of which kind."""

from __future__ import annotations

import functools
import math
from typing import Any, Dict, Mapping, Optional, Sequence

import torch.nn.functional as F
from torch import nn

from ipu_proxynorm.norm.activations import (
    ACTIVATIONS,
    Activation,
    ActivationLike,
    hardtanh,
    leaky_relu,
    name_in_torch,
    resolve_activation,
)

Known = Mapping["type[nn.Module]", ActivationLike]

# Element-wise and without parameters. A subclass may compute something else: by exact class.
_ELEMENTWISE = frozenset(
    (
        *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.GELU),
        *(nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Mish, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU),
        *(nn.LogSigmoid, nn.Softsign, nn.Tanhshrink, nn.Hardshrink, nn.Softshrink, nn.Threshold),
    )
)
# timm's own classes, by name: timm is not imported.
_TIMM = {
    "Swish": "silu",
    "Mish": "mish",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "HardSwish": "hardswish",
    "HardSigmoid": "hardsigmoid",
    "GELU": "gelu",
    "GELUTanh": "gelu_tanh",
}
_PLAIN = ("relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "mish")
_OTHER = ("elu", "selu", "celu", "softplus", "logsigmoid", "softsign", "tanhshrink")
_NAMES = frozenset(
    (*_PLAIN, *_OTHER, "leaky_relu", "hardtanh", "gelu", "clamp", "clamp_min", "clamp_max")
)

# Functions that have a second name.
_ALIASES = {"clip": "clamp", "log_sigmoid": "logsigmoid"}


def of_module(module: nn.Module, known: Known) -> Optional[Activation]:
    """Return the activation that a module is; None: it is none, or has parameters of its own."""
    if type(module) in known:
        return resolve_activation(known[type(module)])
    if type(module) in _ELEMENTWISE:
        return resolve_activation(module)
    if type(module).__module__.startswith("timm.layers.activations"):
        name = type(module).__name__
        for ending in ("Me", "Jit"):
            name = name[: -len(ending)] if name.endswith(ending) else name
        if name in _TIMM:
            return ACTIVATIONS[_TIMM[name]]
        if not list(module.parameters()):
            return resolve_activation(module)
    return None


def of_function(
    function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]
) -> Optional[Activation]:
    """Return the activation that a call computes; None: it is none that is known.

    Args:
        function: a function of ``torch`` or ``torch.nn.functional``, or a tensor method's name.
        arguments: what follows the tensor.
        keywords: the keyword arguments of the call, without the tensor.

    """
    name = _ALIASES.get(_name(function), _name(function))
    if name not in _NAMES:
        return None
    values: Dict[str, Any] = {**dict(zip(_PARAMETERS.get(name, ()), arguments)), **keywords}
    values.pop("inplace", None)
    if not all(value is None or isinstance(value, (int, float, str)) for value in values.values()):
        return None
    if name in _PLAIN:
        return ACTIVATIONS[name]
    if name == "leaky_relu":
        return leaky_relu(values.get("negative_slope", 0.01))
    if name == "hardtanh":
        return hardtanh(values.get("min_val", -1.0), values.get("max_val", 1.0))
    if name == "gelu":
        exact = values.get("approximate", "none") == "none"
        return ACTIVATIONS["gelu" if exact else "gelu_tanh"]
    if name.startswith("clamp"):
        lower, upper = values.get("min"), values.get("max")
        lower = -math.inf if lower is None else float(lower)
        upper = math.inf if upper is None else float(upper)
        bounded = lower < upper and (lower, upper) != (-math.inf, math.inf)
        return hardtanh(lower, upper) if bounded else None
    if name == "softplus" and (values.get("beta", 1), values.get("threshold", 20)) == (1, 20):
        return ACTIVATIONS[name]
    called = ", ".join(f"{key}={value}" for key, value in values.items())
    function = functools.partial(getattr(F, name), **values)
    return Activation(f"{name}({called})" if called else name, function)


_PARAMETERS = {
    "leaky_relu": ("negative_slope",),
    "hardtanh": ("min_val", "max_val"),
    "clamp": ("min", "max"),
    "clamp_min": ("min",),
    "clamp_max": ("max",),
    "softplus": ("beta", "threshold"),
    "elu": ("alpha",),
    "celu": ("alpha",),
}


def _name(function: Any) -> str:
    """Return the name of torch's function or tensor method, without the mark of in-place ones."""
    return function.rstrip("_") if isinstance(function, str) else name_in_torch(function)


def same(one: Activation, other: Activation) -> bool:
    """Whether two activations are the same function; functions of a user's may share a name."""
    return one.name == other.name and _alike(one.function, other.function)


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, functools.partial) and isinstance(other, functools.partial):
        arguments = (one.args, one.keywords) == (other.args, other.keywords)
        return arguments and _alike(one.func, other.func)
    if isinstance(one, nn.Module):
        return type(one) is type(other) and _plain_attributes(one) == _plain_attributes(other)
    return one is other


def _plain_attributes(module: nn.Module) -> Dict[str, Any]:
    plain = (bool, int, float, str)
    own = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
    return {name: value for name, value in own.items() if name != "training"}
