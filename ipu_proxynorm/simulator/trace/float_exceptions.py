"""Floating-point exceptions: overflow, division by zero and invalid operations stop the run."""

from __future__ import annotations

import math
from typing import Any, List, Sequence

import torch

from ipu_proxynorm.nested import tensors_in

from .. import poptorch_core
from .effects import operator_name
from .origins import Origin
from .recorder import Recorder

_ALLOCATIONS = frozenset({
    "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided",
    "resize", "resize_", "resize_as_",
})  # fmt: skip
_COMPARISONS = frozenset({"eq", "ge", "gt", "le", "lt", "ne"})


class FloatCheck:
    """Stops the run where an operation's result is not a number, or infinite, of its own making.

    Args:
        name: the operation's name.
        origin: where it stands in the user's program.
        outputs: how many of the tensors that it is called with are results; they come first.

    """

    has_effect = True
    is_watch = True
    runs_anywhere = True
    __name__ = "float_check"

    def __init__(self, name: str, origin: Origin, outputs: int) -> None:
        self._name = name
        self._origin = origin
        self._outputs = outputs

    def record(self, *tensors: torch.Tensor) -> None:
        """Stay silent while the program is recorded: its values do not count yet."""

    def __call__(self, *tensors: torch.Tensor) -> None:
        """Check the results against the inputs.

        Raises:
            poptorch.Error: names the operation and the line. It is an error of the program, not of
                the machine, so none to recover from (PopTorch's ``overview.rst:184``).

        """
        results = [t for t in tensors[: self._outputs] if t.is_floating_point()]
        inputs = [t for t in tensors[self._outputs :] if t.is_floating_point()]
        nan_in = _any(torch.isnan, inputs)
        invalid = (_any(torch.isnan, results) and not nan_in) or (
            self._name in _COMPARISONS and nan_in
        )
        overflow = _any(torch.isinf, results) and not _any(torch.isinf, inputs)
        if not invalid and not overflow:
            return
        kind = "an invalid operation" if invalid else "an overflow or a division by zero"
        location = self._origin.location
        where = f" ({location})" if location else " of the backward pass"
        raise poptorch_core.createError(
            f"Floating-point exception: {kind} in {self._name}{where}",
            layer="poplar_application_runtime_error",
            location=location,
        )


def watch(recorder: Recorder, function: Any, given: Any, results: List[torch.Tensor]) -> None:
    """Let the program check what an operation has just computed.

    Memory that is only allocated holds anything: nothing has computed it. Nor is an infinity of
    the operation's making that is one of its numbers, as what a mask fills in.
    """
    if operator_name(function) in _ALLOCATIONS or _has_infinite_number(given):
        return
    inputs = tensors_in(given)
    results = [tensor for tensor in results if not any(tensor is other for other in inputs)]
    check = FloatCheck(operator_name(function), recorder.where(), len(results))
    recorder.emit(check, [*results, *inputs], {})


def _has_infinite_number(given: Any) -> bool:
    if isinstance(given, dict):
        given = list(given.values())
    if isinstance(given, (list, tuple)):
        return any(_has_infinite_number(each) for each in given)
    return isinstance(given, float) and not math.isfinite(given)


def _any(test: Any, tensors: Sequence[torch.Tensor]) -> bool:
    return any(bool(test(tensor).any()) for tensor in tensors)
