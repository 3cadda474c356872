"""What a recorded program says about a tensor: is it constant, is it a slice with a step."""

from __future__ import annotations

from typing import Dict, Mapping, Optional, Protocol

import torch

from ..origins import Origin
from ..tape import Block, Operation, Slot, slots_in

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
            for slot in slots_in(step.outputs)
        }

    def is_constant(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor's values are known when the program is compiled.

        PopTorch computes what depends on constants alone while it compiles
        (type_and_constant_canonicalization/EvaluateConstexprs.cpp), and takes parameters and
        buffers of integers as constants (dispatchers/JitDispatch.cpp:112).
        """
        makers = self._makers()
        pending = [self._program.slot_of(tensor)]
        while pending:
            slot = pending.pop()
            if slot is None or slot in self._program.constants:
                continue
            made = makers.get(slot)
            if made is None or made.random:
                return False
            pending.extend(slots_in((made.args, made.kwargs)))
        return True

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
            slot = next(slots_in(made.args))
        return False
