"""Checks that a program hands each operation tensors of the shapes and types it was traced with.

torch's kernels trust their arguments, some beyond their memory: a program of which this does not
hold must never run.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch

from .. import poptorch_core
from .tape import Block, Branch, Loop, Operation, Slot, makes, uses


class Traced(NamedTuple):
    """What is known of a tensor while a model is traced."""

    shape: Tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Traced:
        """Return what is known of a tensor."""
        return cls(tuple(tensor.shape), tensor.dtype)

    def __str__(self) -> str:
        return f"{str(self.dtype).split('.')[-1]}{list(self.shape)}"


def fault(what: str) -> poptorch_core.Error:
    """Return the error for a program that contradicts its own trace."""
    return poptorch_core.createError(
        f"The simulator has made a program that contradicts its trace and will not run it: {what}. "
        "This is a fault of the simulator, not of the model: please report it with the program.",
        layer="poptorch_internal_error",
    )


def check_argument(name: str, location: str, given: Traced, traced: Traced) -> None:
    """Check that an operation is given what was traced.

    Args:
        name: the operation's.
        location: ``file:line`` of the model that it comes from.
        given: what it is given.
        traced: what the trace knows of the tensor.

    Raises:
        poptorch.Error: names the operation and both.

    """
    if given != traced:
        raise fault(f"{name} of {location} is given {given} where {traced} was traced")


def check_arguments(
    names: Sequence[str], given: Sequence[torch.Tensor], traced: Sequence[Traced]
) -> None:
    """Check what a program is about to be run on.

    Args:
        names: the names of the arguments.
        given: the tensors.
        traced: what it was traced with, in the same order.

    Raises:
        poptorch.Error: names the first argument that differs.

    """
    for name, tensor, expected in zip(names, given, traced):
        if tensor.dtype != expected.dtype or tensor.shape != expected.shape:
            raise fault(f"{name} is {Traced.of(tensor)} where {expected} was traced")


_Known = Dict[Slot, Optional[Traced]]


def check_program(block: Block, arguments: Mapping[Slot, Optional[Traced]]) -> None:
    """Check every operation of a program that is finished.

    Args:
        block: the program.
        arguments: its arguments and constants.

    Raises:
        poptorch.Error: an operation reads what nothing has made, or something else than was traced.

    """
    _results(block, dict(arguments))


def _results(block: Block, known: _Known) -> List[Optional[Traced]]:
    for step in block.operations:
        if isinstance(step, Operation):
            _check_operation(step, known)
        elif isinstance(step, Branch):
            _require(known, [step.condition], "a branch")
            one, other = (_results(body, dict(known)) for body in (step.then, step.otherwise))
            _check_same(one, other, "a branch")
            known.update(zip(step.outputs, one))
        else:
            _check_loop(step, known)
    return _require(known, block.results, "the program's end")


def _check_operation(step: Operation, known: _Known) -> None:
    slots = list(uses(step))
    for slot, given in zip(slots, _require(known, slots, f"{step.name} of {step.origin.location}")):
        traced = step.reads.get(slot)
        if given is not None and traced is not None:
            check_argument(step.name, step.origin.location, given, traced)
    for slot in makes(step):
        known[slot] = None  # what a pass over the program has made may not say
    known.update(step.makes)


def _check_loop(step: Loop, known: _Known) -> None:
    before = _require(known, step.initial, "a loop")
    inside = {**known, **dict(zip(step.carried, before))}
    _check_same(before, _results(step.body, inside), "a loop")
    known.update(zip(step.carried, before))


def _require(known: _Known, slots: Sequence[Slot], who: str) -> List[Optional[Traced]]:
    missing = [slot.number for slot in slots if slot not in known]
    if missing:
        raise fault(f"{who} reads tensor {missing[0]}, which nothing has made")
    return [known[slot] for slot in slots]


def _check_same(
    some: Sequence[Optional[Traced]], others: Sequence[Optional[Traced]], who: str
) -> None:
    for one, other in zip(some, others):
        if one is not None and other is not None and one != other:
            raise fault(f"{who} has {one} in one case and {other} in the other")
