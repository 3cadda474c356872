"""The values of an optimiser's attributes that PopART refuses."""

from __future__ import annotations

import ctypes
from typing import Any, Dict, List, Mapping, Set, Tuple

from .._optimizer_attributes import _OptimizerType
from ..poptorch_core import createError

SGD = (_OptimizerType.SGD1, _OptimizerType.SGD2)
RMSPROP = (_OptimizerType.RMSPROP, _OptimizerType.RMSPROP_CENTERED)

# What must not be below zero, and what must be above it, by the words of the errors.
_NOT_NEGATIVE = {
    "learningRate": "learning rate",
    "weightDecay": "weight decay",
    "momentum": "momentum",
    "dampening": "dampening",
    "beta1": "beta1",
    "beta2": "beta2",
    "alpha": "alpha",
}
_POSITIVE = {"velocityScaling": "velocity scaling", "eps": "eps"}


def float32(value: Any) -> float:
    """Return a number as PopTorch hands it over."""
    return ctypes.c_float(float(value)).value


def check_values(attributes: Mapping[str, Any], groups: Set[int]) -> None:
    """Check the values of the defaults and of the groups that hold parameters.

    Source: PopART ``optimizer.cpp:150``, ``sgd.cpp:181``, ``adam.cpp:181``, ``adaptive.cpp:177``.

    Args:
        attributes: what ``convertOptimizerToDict`` returns.
        groups: the numbers of these groups; one that is missing is left out.

    Raises:
        poptorch.Error: names the attribute and its value.

    """
    kind = attributes["optimizer_type"]
    family = "SGD" if kind in SGD else "Adaptive" if kind in RMSPROP else "Adam"
    loss_scaling = attributes["defaults"]["lossScaling"]
    if float32(loss_scaling[0]) == 0:
        raise createError("Loss scaling cannot be 0", layer="popart_exception")
    present = sorted(group for group in groups if group < len(attributes["groups"]))
    places: List[Tuple[str, Dict[str, Any]]] = [("the defaults", attributes["defaults"])]
    places += [(f"group {group}", attributes["groups"][group]) for group in present]
    for where, values in places:
        if kind == _OptimizerType.SGD2:  # CompilerImpl.cpp:823
            values = {**values, "velocityScaling": loss_scaling}
        numbers = {key: float32(value) for key, (value, _) in values.items()}
        _check(numbers, values["learningRate"][1], f"in {family}, {where} of the optimizer")


def _check(numbers: Mapping[str, float], constant_rate: bool, where: str) -> None:
    for key, words in _NOT_NEGATIVE.items():
        if numbers.get(key, 0.0) < 0:
            raise _refused(f"Negative {words} ({numbers[key]}) {where}")
    if constant_rate and numbers["learningRate"] == 0:
        raise _refused(f"Constant, zero learning rate {where}: mark it as variable")
    for key, words in _POSITIVE.items():
        if numbers.get(key, 1.0) <= 0:
            raise _refused(f"Non-positive {words} ({numbers[key]}) {where} is not supported")
    if numbers.get("nesterov") and numbers["dampening"] > 0:
        raise _refused(f"Dampening ({numbers['dampening']}) with Nesterov's momentum {where}")


def _refused(message: str) -> Exception:
    return createError(message, layer="popart_exception")
