"""The rewrites in order, and the functions that the rewritten program becomes.

``POPTORCH_SIM_OPTIMIZE=0`` runs programs as they were recorded. What schedules, anchors and
refusals show is what was recorded in any case.
"""

from __future__ import annotations

import os
from typing import Callable, Dict, List, Sequence

import torch

from .. import compute_device, consistency
from ..tape import Block, Slot, makes, operations_in, to_function, uses, without_dead_code
from .duplicates import without_duplicates
from .functional import functional
from .in_place import in_place
from .linear import moved_to_few
from .once import parted
from .roundings import without_idle_roundings
from .selects import vectorised_selects

VARIABLE = "POPTORCH_SIM_OPTIMIZE"
Tensors = List[torch.Tensor]


def enabled() -> bool:
    """Tell whether programs are rewritten: unless the environment says no."""
    return os.environ.get(VARIABLE, "1") != "0"


class Executable:
    """A program to be run.

    ``prepare`` computes what holds between two weight updates, of all arguments of which it reads
    the parameters; ``run`` a micro-batch, of its result and the arguments.
    """

    def __init__(
        self, prepare: Callable[..., Tensors], run: Callable[..., Tensors], block: Block
    ) -> None:
        self._prepare = prepare
        self._run = run
        #: The operations of ``run``.
        self.block = block

    def prepare(self, arguments: Sequence[torch.Tensor]) -> Tensors:
        """Return what holds until a parameter changes, given the first arguments: parameters."""
        return self._prepare(*arguments)

    def run(self, prepared: Sequence[torch.Tensor], arguments: Sequence[torch.Tensor]) -> Tensors:
        """Compute one micro-batch and return the program's results."""
        return self._run(*prepared, *arguments)


def executable(
    block: Block,
    arguments: Sequence[Slot],
    parameters: int,
    constants: Dict[Slot, torch.Tensor],
    device: torch.device = compute_device.HOST,
) -> Executable:
    """Return what runs a program.

    Args:
        block: operators as recorded.
        arguments: what the program takes.
        parameters: how many of these, the first, are parameters.
        constants: tensors that are part of the program.
        device: that computes it. Only a CPU gains by writing over tensors.

    """
    if not enabled():
        run = to_function(block, arguments, constants)
        return Executable(lambda *_: [], run, block)
    held = [*arguments, *constants]
    block = rewritten(block, held)
    stay = [*arguments[:parameters], *constants]
    first, rest = parted(block, stay, held)
    if device == compute_device.HOST:
        held += first.results
        first, rest = in_place(first, held), in_place(rest, held)
    # Rewritten, it must still hand each operation what was traced.
    consistency.check_program(first, dict.fromkeys([*arguments[:parameters], *constants]))
    consistency.check_program(rest, dict.fromkeys([*first.results, *arguments, *constants]))
    return Executable(
        to_function(first, arguments[:parameters], constants),
        to_function(rest, [*first.results, *arguments], constants),
        rest,
    )


def rewritten(block: Block, held: Sequence[Slot]) -> Block:
    """Return the block rewritten, in no respect that where it runs depends on.

    Args:
        block: operations as recorded.
        held: arguments and constants.

    """
    block = functional(block, held, numbers_after(block, held))
    block = without_dead_code(without_duplicates(block, held))
    block = without_dead_code(without_idle_roundings(block, held))
    block = without_dead_code(vectorised_selects(block, held, numbers_after(block, held)))
    return without_dead_code(moved_to_few(block, held, numbers_after(block, held)))


def numbers_after(block: Block, held: Sequence[Slot]) -> Callable[[], Slot]:
    """Return a function that gives the numbers no tensor of the program has yet."""
    slots = [slot for step in operations_in(block) for slot in makes(step)]
    slots += [slot for step in block.operations for slot in (*uses(step), *makes(step))]
    count = max((slot.number for slot in (*slots, *held)), default=-1)

    def new_slot() -> Slot:
        nonlocal count
        count += 1
        return Slot(count)

    return new_slot
