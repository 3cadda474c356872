"""Custom operators: the chip's C++ cannot run here, a registered Python function can.

Collectives over replicas and operators of Graphcore's public programs need no registration.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, Union

import torch

from .. import _impl
from .._utils import attributes_lists
from ..trace.recorder import active
from . import collectives
from .public_operators import OPERATORS

AttributeValue = Union[float, int, str, list, tuple]

_equivalents: Dict[Tuple[str, str], Callable] = {}


def registerCustomOp(name: str, domain: str, function: Optional[Callable]) -> None:
    """Say what a custom operator computes; only the simulator knows this function.

    Args:
        name: the name of the operator, as in `custom_op`.
        domain: its domain.
        function: takes the input tensors, then the attributes as keywords, and returns the outputs.
            It is differentiated as torch does. None forgets the operator.

    """
    if function is None:
        _equivalents.pop((domain, name), None)
    else:
        _equivalents[domain, name] = function


def _check_text(value: Any) -> None:
    if isinstance(value, (list, tuple)):
        for element in value:
            _check_text(element)
    elif isinstance(value, str) and not value.isascii():
        raise ValueError(f"{value} contains non-ASCII characters.")


def _check_attributes(attributes: Dict[str, AttributeValue]) -> None:
    for key, value in attributes.items():
        if not isinstance(key, str):
            raise ValueError("All attribute keys must be strings.")
        if not isinstance(value, (float, int, str, list, tuple)):
            raise ValueError(
                "Attribute values must be floats, ints, strings or a list/tuple of float, ints of "
                "strings."
            )
        if isinstance(value, (list, tuple)) and len({type(element) for element in value}) > 1:
            raise ValueError("The types in a list/tuple attribute must all be the same.")
        _check_text(key)
        _check_text(value)


def custom_op(
    inputs: Sequence[torch.Tensor],
    name: str,
    domain: str,
    domain_version: int,
    example_outputs: Sequence[torch.Tensor],
    attributes: Optional[Dict[str, AttributeValue]] = None,
) -> List[torch.Tensor]:
    """Apply a custom operator of PopART.

    Args:
        inputs: its inputs.
        name: its name.
        domain: its domain.
        domain_version: ignored by the simulator.
        example_outputs: tensors of the outputs' shapes and types.
        attributes: its attributes.

    Raises:
        ValueError: an attribute that cannot be passed on.
        poptorch.Error: the simulator has no Python equivalent of the operator, or it returns
            something else than ``example_outputs`` promise.

    """
    _check_attributes(attributes or {})
    if attributes is not None and attributes not in attributes_lists:
        attributes_lists.append(attributes)
    function = _equivalents.get((domain, name))
    if function is None and collectives.is_collective(name, domain):
        return collectives.collective(inputs, name, example_outputs, attributes or {})
    if function is None and (domain, name) in OPERATORS:
        if active() is None:  # PopTorch's operator does as much where there is no IPU
            return [example.clone() for example in example_outputs]
        function = OPERATORS[domain, name]
    if function is None:
        raise _impl.createPoptorchError(
            f"Custom operator {domain}.{name} is compiled for the IPU and cannot run on a CPU: "
            "give the simulator a Python equivalent with "
            f'registerCustomOp("{name}", "{domain}", function), from ipu_proxynorm.simulator.'
        )
    recorder = active()
    # It stands for what PopTorch has no operators for: any of torch's will do.
    with contextlib.nullcontext() if recorder is None else recorder.trusted():
        result = function(*inputs, **(attributes or {}))
    outputs = list(result) if isinstance(result, (list, tuple)) else [result]
    expected = [tuple(example.shape) for example in example_outputs]
    if [tuple(output.shape) for output in outputs] != expected:
        raise _impl.createPoptorchError(
            f"The Python equivalent of custom operator {domain}.{name} returns shapes "
            f"{[tuple(output.shape) for output in outputs]}, but example_outputs have {expected}."
        )
    return outputs
