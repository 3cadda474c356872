"""Transfers that overlap with computation: where they may be asked for."""

from __future__ import annotations

from typing import List, NamedTuple, Optional, Sequence

from .. import enums
from ..machine import pipeline
from ..options import Options
from . import refusals
from .origins import Origin
from .tape import Block, Slot, operations_in, slots_in


class Overlap(NamedTuple):
    """One call of ``set_overlap_for_input`` or ``set_overlap_for_output``.

    ``kind`` is "input" or "output"; ``original`` the tensor to mark, ``marked`` what came of it,
    ``origin`` where it is called.
    """

    kind: str
    mode: enums.OverlapMode
    original: Slot
    marked: Slot
    origin: Origin


def check(
    overlaps: Sequence[Overlap],
    block: Block,
    inputs: List[Slot],
    returned: List[Optional[Slot]],
    options: Options,
) -> None:
    """Check every overlap that a model asks for.

    Args:
        overlaps: the calls.
        block: the program, results not yet set.
        inputs: the inputs of the model.
        returned: by the model.
        options: the model's options.

    Raises:
        poptorch.Error: on something that is no input or output, or has further uses; under a
            strategy, or without the tiles, that overlapping needs.

    """
    for overlap in overlaps:
        if overlap.kind == "input":
            _check_input(overlap, block, inputs, returned)
        else:
            _check_output(overlap, returned)
    for overlap in overlaps:
        if overlap.mode == enums.OverlapMode.NoOverlap:
            continue
        if pipeline.is_pipelined(options):
            raise refusals.refuse(
                "Overlapped IO is not supported with poptorch.PipelinedExecution. If you are using "
                "only one IPU, please switch to poptorch.ShardedExecution.",
                overlap.origin,
            )
        if not options.TensorLocations.exists("numIOTiles"):
            raise refusals.refuse(
                "No IO tiles allocated. You must allocate at least 32 IO tiles using "
                "poptorch.Options().TensorLocations.numIOTiles.",
                overlap.origin,
            )


def _check_input(
    overlap: Overlap, block: Block, inputs: List[Slot], returned: List[Optional[Slot]]
) -> None:
    if overlap.original not in inputs:
        raise refusals.refuse(
            "poptorch.set_overlap_for_input applied on a node which is not a tensor input to the "
            "model.",
            overlap.origin,
        )
    uses = returned.count(overlap.original) + sum(
        overlap.original in slots_in((operation.args, operation.kwargs))
        for operation in operations_in(block)
    )
    if uses > 1:
        raise refusals.refuse(
            "poptorch.set_overlap_for_input must be the only op applied to an input. This is not "
            f"the case for input {inputs.index(overlap.original)} to the model.",
            overlap.origin,
        )


def _check_output(overlap: Overlap, returned: List[Optional[Slot]]) -> None:
    if overlap.marked not in returned:
        raise refusals.refuse(
            "poptorch.set_overlap_for_output applied on a node which is not a tensor output to the "
            "model.",
            overlap.origin,
        )
    if returned.count(overlap.marked) + returned.count(overlap.original) > 1:
        raise refusals.refuse(
            "poptorch.set_overlap_for_output cannot be used with a tensor that is returned twice. "
            "Please check all returned tensors including those nested in tuples/lists.",
            overlap.origin,
        )
