"""Which optimiser may take the place of a compiled model's, and what then holds."""

from __future__ import annotations

import math
from typing import Any, Dict, Mapping, Optional, Set, Tuple

from .._optimizer_attributes import _OptimizerType
from .value_checks import RMSPROP, SGD

_Value = Tuple[Any, bool]  # whether it is constant

_COMPARED_SGD = (
    "lossScaling",
    "learningRate",
    "weightDecay",
    "momentum",
    "velocityScaling",
    "nesterov",
)
_COMPARED_ADAM = (
    "lossScaling",
    "learningRate",
    "weightDecay",
    "beta1",
    "beta2",
    "eps",
    "maxWeightNorm",
)
_COMPARED_RMSPROP = ("lossScaling", "learningRate", "weightDecay", "alpha", "momentum", "eps")
# PopTorch maps both to one mode of PopART's (CompilerImpl.cpp:874-884).
_SAME_MODE = (_OptimizerType.ADAMW, _OptimizerType.ADAMW_NO_BIAS)


def refusal(old: Mapping[str, Any], new: Mapping[str, Any], groups: Set[int]) -> Optional[str]:
    """Return why PopART refuses a replacement, or None if it does not.

    Source: PopART ``optimizer.cpp:35``, ``sgd.cpp:691``, ``adam.cpp:589``, ``adaptive.cpp:477``,
    ``optimizervaluemap.cpp:37``, ``optimizervalue.cpp:25``.

    Args:
        old: the attributes that the model was compiled for, ``convertOptimizerToDict``'s.
        new: those of the replacement.
        groups: the numbers of the compiled groups that hold parameters.

    """
    norms = [attributes.get("maxGradNorm", math.inf) for attributes in (old, new)]
    if norms[0] != norms[1]:
        return f"maxGradNorm changes from {norms[0]} to {norms[1]}"
    kinds = [attributes["optimizer_type"] for attributes in (old, new)]
    if not _same_kind(*kinds):
        return f"{kinds[0].name} cannot become {kinds[1].name}"
    missing = [group for group in sorted(groups) if group >= len(new["groups"])]
    if missing:
        return f"it has no group {missing[0]}"
    places = [("the defaults", old["defaults"], new["defaults"])]
    places += [(f"group {g}", old["groups"][g], new["groups"][g]) for g in sorted(groups)]
    for key in _compared(kinds[0]):
        for where, before, after in places:
            if key in before:
                values = (_in_force(key, before, old), _in_force(key, after, new))
                reason = _differs(f"{key} of {where}", *values)
                if reason:
                    return reason
    return _velocity(old, new) if kinds[0] in SGD else None


def replaced(old: Mapping[str, Any], new: Mapping[str, Any]) -> Dict[str, Any]:
    """Return the attributes that hold once a replacement is accepted.

    Kind and types are compiled, and so are constants, whether PopART compares them or not.
    """
    kept = {key: value for key, value in old.items() if key not in ("defaults", "groups")}
    defaults = _with_constants(old["defaults"], new["defaults"])
    groups = [_with_constants(*pair) for pair in zip(old["groups"], new["groups"])]
    return {**kept, "defaults": defaults, "groups": groups}


def _with_constants(old: Dict[str, Any], new: Dict[str, Any]) -> Dict[str, Any]:
    return {key: value if value[1] else new.get(key, value) for key, value in old.items()}


def _same_kind(old: _OptimizerType, new: _OptimizerType) -> bool:
    both = (old, new)
    return old == new or any(all(kind in same for kind in both) for same in (SGD, _SAME_MODE))


def _compared(kind: _OptimizerType) -> Tuple[str, ...]:
    if kind in SGD:
        return _COMPARED_SGD
    return _COMPARED_RMSPROP if kind in RMSPROP else _COMPARED_ADAM


def _in_force(key: str, values: Mapping[str, Any], attributes: Mapping[str, Any]) -> _Value:
    """Return a value; the velocity scaling of separate accumulators is the loss scaling.

    Source: ``CompilerImpl.cpp:823-825`` and ``857-859``.
    """
    if key == "velocityScaling" and attributes["optimizer_type"] == _OptimizerType.SGD2:
        return attributes["defaults"]["lossScaling"]
    return values[key]


def _differs(what: str, old: _Value, new: _Value) -> Optional[str]:
    if old[1] != new[1]:
        return f"{what} would turn from constant to variable or back"
    if old[1] and old[0] != new[0]:
        return f"{what} is a constant {old[0]} and cannot become {new[0]}"
    return None


def _velocity(old: Mapping[str, Any], new: Mapping[str, Any]) -> Optional[str]:
    """Return why the accumulators of two SGDs do not fit, or None."""
    momentum, constant = old["defaults"]["momentum"]
    if constant and momentum == 0.0:  # there is none
        return None
    if old["optimizer_type"] != new["optimizer_type"]:
        return "use_combined_accum changes"
    if old["optimizer_type"] == _OptimizerType.SGD2:
        for key in ("accumType", "velocityAccumType"):
            if old[key] != new[key]:
                return f"{key} changes"
    return None
