"""What a model returns: which of it the device computes, and of which kind."""

from __future__ import annotations

import warnings
from typing import Any, List, NamedTuple, Set

import torch

from .. import _utils
from ..options import Options
from . import handlers, overlap
from .tape import Slot
from .tracing import Trace
from .written import storage_of


class Output(NamedTuple):
    """A result of the model's that the device computes: its type, and whether it is constant.

    PopTorch computes what depends on constants alone while it compiles.
    """

    dtype: torch.dtype
    constant: bool


class Returned(NamedTuple):
    """The model's result.

    Attributes:
        structure: with an empty tensor for each that the device computes.
        on_device: for each tensor of the result: the device computes it.
        slots: of the tensors that it computes.
        of_device: what these are.

    """

    structure: Any
    on_device: List[bool]
    slots: List[Slot]
    of_device: List[Output]


def bind(
    trace: Trace, result: Any, held: Set[int], inputs: List[Slot], options: Options
) -> Returned:
    """Give slots to the tensors that the model returns.

    Those that share the storage of an input, a parameter, a buffer or a constant are copied, as it
    may change before the host reads them.

    Args:
        trace: the trace in progress.
        result: what the model has returned.
        held: the storages of all arguments.
        inputs: the slots of the model's inputs.
        options: the model's options.

    Raises:
        poptorch.Error: a transfer that cannot overlap with computation.

    """
    recorder = trace.recorder
    tensors = _utils.flattenTensorStructure(result)
    held = held | {storage_of(tensor) for tensor in recorder.constant_tensors()}
    constants = handlers.ProgramFacts(recorder).constants()
    found = [recorder.slot_of(tensor) for tensor in tensors]
    overlap.check(trace.overlaps, recorder.block, inputs, found, options)
    returned = Returned(None, [slot is not None for slot in found], [], [])
    shown: List[torch.Tensor] = []
    for tensor, slot in zip(tensors, found):
        if slot is None:
            warnings.warn(
                f"Output expected to be on the IPU but is on {tensor.device.type}", stacklevel=3
            )
            shown.append(tensor)
            continue
        if storage_of(tensor) in held:
            copied = recorder.slot_of(tensor.detach().clone())
            assert copied is not None
            returned.slots.append(copied)
        else:
            returned.slots.append(slot)
        returned.of_device.append(Output(tensor.dtype, slot in constants))
        shown.append(torch.empty(0))
    return returned._replace(structure=_utils.reconstructTensorStructure(result, shown))
