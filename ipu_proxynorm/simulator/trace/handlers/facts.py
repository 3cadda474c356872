"""What a recorded program says about a tensor: is it constant, is it a slice with a step."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Protocol, Set

import torch

from .. import effects
from ..origins import Origin
from ..tape import Block, Operation, Slot, makes, slots_in

# What PopTorch follows from an operator in place back to the slice that it writes to
# (PopartCanonicalization.cpp:66).
_RESHAPES = frozenset({"_reshape_alias", "_unsafe_view", "select", "squeeze", "unsqueeze", "view"})


class RecordedProgram(Protocol):
    """The program as far as it is recorded."""

    block: Block
    constants: Dict[Slot, torch.Tensor]
    training: bool

    @property
    def checks_operators(self) -> bool:
        """Tell whether operators are the model's, rather than made of an accepted operation."""

    def slot_of(self, tensor: torch.Tensor) -> Optional[Slot]:
        """Return the tensor's slot, or None if the program does not know it."""

    def where(self) -> Origin:
        """Return where in the user's program the present operation comes from."""


def _is_view(function: Any) -> bool:
    """Tell whether an operator's result shows the memory of its argument."""
    schema = getattr(function, "_schema", None)
    returns = schema.returns if schema is not None else []
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


class ProgramFacts:
    """Answers about the tensors of one program."""

    def __init__(self, program: RecordedProgram) -> None:
        self._program = program
        self.training = program.training

    def _makers(self) -> Mapping[Slot, Operation]:
        return {
            slot: step
            for step in self._program.block.operations
            if isinstance(step, Operation)
            for slot in makes(step)
        }

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor's values are known when the program is compiled.

        PopTorch computes what depends on constants alone while it compiles
        (type_and_constant_canonicalization/EvaluateConstexprs.cpp), and takes parameters and
        buffers of integers as constants (dispatchers/JitDispatch.cpp:112).
        """
        slot = self._program.slot_of(tensor)
        return slot is None or slot in self.constants()

    def constants(self) -> Set[Slot]:
        """Return the slots whose tensors depend on constants alone, written in place or not."""
        found = set(self._program.constants)
        memory: Dict[Slot, Slot] = {}  # of a view: the slot whose memory it shows
        for step in self._program.block.operations:
            if not isinstance(step, Operation):
                continue
            read = list(slots_in((step.args, step.kwargs)))
            made = makes(step)
            if read and _is_view(step.function):
                memory.update(dict.fromkeys(made, memory.get(read[0], read[0])))
            if not step.random and found.issuperset(read):
                found.update(made)
                continue
            written = slots_in(effects.written_arguments(step.function, step.args, step.kwargs))
            spoilt = {memory.get(slot, slot) for slot in written}
            found -= {slot for slot in found if memory.get(slot, slot) in spoilt}
        return found

    def is_strided_slice(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor is a view of a slice with a step other than 1."""
        if tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes():
            return False
        makers = self._makers()
        slot = self._program.slot_of(tensor)
        while slot is not None and slot in makers:
            made = makers[slot]
            if made.name == "slice":
                step = made.args[4] if len(made.args) > 4 else made.kwargs.get("step", 1)
                if step != 1:
                    return True
            elif made.name not in _RESHAPES:
                return False
            slot = slots_in(made.args)[0]
        return False
