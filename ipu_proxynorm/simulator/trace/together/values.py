"""The tensors of a program of several micro-batches, in the forms that operators ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

import torch

from ..consistency import Traced
from ..tape import Operation, Slot, Step, makes

aten = torch.ops.aten
#: A form: folded into this dimension, or one of these two.
Form = Union[int, str]
STACKED, SUMMED = "stacked", "summed"


class NotTogether(Exception):
    """Micro-batches of this program cannot be computed together; says why."""


@dataclass
class Values:
    """What the recorded tensors have become, and the operations so far.

    Attributes:
        count: the number of the micro-batches.
        traced: shape and type of the recorded tensors.
        new_slot: gives numbers to new tensors.
        only_sums: recorded tensors of which nothing but the sum over the micro-batches is needed.
        steps: the operations so far.
        forms: of the tensors that differ between micro-batches. Others are what they were.

    """

    count: int
    traced: Dict[Slot, Traced]
    new_slot: Callable[[], Slot]
    only_sums: Set[Slot]
    steps: List[Step] = field(default_factory=list)
    forms: Dict[Slot, Dict[Form, Slot]] = field(default_factory=dict)

    def differs(self, slot: Any) -> bool:
        """Tell whether a recorded tensor is another for each micro-batch."""
        return isinstance(slot, Slot) and slot in self.forms

    def shape(self, slot: Slot) -> Tuple[int, ...]:
        """Return the shape of a recorded tensor."""
        return self.traced[slot].shape

    def form_shape(self, slot: Slot, form: Form) -> Tuple[int, ...]:
        """Return the shape of a recorded tensor's form."""
        shape = self.shape(slot)
        if form == SUMMED:
            return shape
        if isinstance(form, str):
            return (self.count, *shape)
        return (*shape[:form], self.count * shape[form], *shape[form + 1 :])

    # ---- operations -------------------------------------------------------------------------

    def emit(
        self,
        function: Callable,
        args: Sequence[Any],
        like: Operation,
        made: Optional[Traced] = None,
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Slot:
        """Add an operation with one result, and return that."""
        slot = self.new_slot()
        known = {slot: made} if made is not None else {}
        self.steps.append(
            Operation(function, list(args), kwargs or {}, slot, like.origin, makes=known)
        )
        return slot

    def set(self, slot: Slot, form: Form, new: Slot) -> None:
        """Let a recorded tensor be ``new``, in this form and no other."""
        self.forms[slot] = {form: new}

    def call(
        self, step: Operation, args: Sequence[Any], kwargs: Dict[str, Any], forms: Sequence[Form]
    ) -> None:
        """Add an operation that stands for a recorded one.

        Args:
            step: the recorded one.
            args: the arguments of the new one.
            kwargs: its keyword arguments.
            forms: in which it makes the results, one for each.

        """
        names: Dict[Slot, Slot] = {}
        known: Dict[Slot, Traced] = {}
        for slot, form in zip(makes(step), forms):
            names[slot] = new = self.new_slot()
            if slot in self.traced:
                known[new] = Traced(self.form_shape(slot, form), self.traced[slot].dtype)
            self.set(slot, form, new)
        outputs = _renamed(step.outputs, names)
        self.steps.append(
            Operation(step.function, list(args), dict(kwargs), outputs, step.origin, makes=known)
        )

    # ---- forms ------------------------------------------------------------------------------

    def has(self, slot: Any, form: Form) -> bool:
        """Tell whether a tensor is there in this form."""
        return self.differs(slot) and form in self.forms[slot]

    def stacked(self, slot: Slot, like: Operation) -> Slot:
        """Return (micro-batches, *shape)."""
        forms = self.forms[slot]
        if STACKED not in forms:
            folded = [form for form in forms if isinstance(form, int)]
            if not folded:
                raise NotTogether("a sum over micro-batches is read by one of them")
            shape, dim = self.shape(slot), folded[0]
            parted = (*shape[:dim], self.count, *shape[dim:])
            made = Traced(parted, self.traced[slot].dtype)
            new = self.emit(aten.reshape.default, [forms[dim], list(parted)], like, made)
            if dim:
                order = [dim, *range(dim), *range(dim + 1, len(parted))]
                made = Traced((self.count, *shape), made.dtype)
                new = self.emit(aten.permute.default, [new, order], like, made)
            forms[STACKED] = new
        return forms[STACKED]

    def folded(self, slot: Slot, like: Operation, dim: int = 0) -> Slot:
        """Return the micro-batches joined to a dimension, by default the first."""
        forms = self.forms[slot]
        if dim not in forms:
            new = self.stacked(slot, like)
            shape, dtype = self.shape(slot), self.traced[slot].dtype
            if dim:
                order = [*range(1, dim + 1), 0, *range(dim + 1, len(shape) + 1)]
                parted = Traced((*shape[:dim], self.count, *shape[dim:]), dtype)
                new = self.emit(aten.permute.default, [new, order], like, parted)
            made = Traced(self.form_shape(slot, dim), dtype)
            forms[dim] = self.emit(aten.reshape.default, [new, list(made.shape)], like, made)
        return forms[dim]

    def summed(self, slot: Slot, like: Operation) -> Slot:
        """Return the sum over the micro-batches; of one that is the same in all, a multiple."""
        made = self.traced[slot]
        if not self.differs(slot):
            return self.emit(aten.mul.Tensor, [slot, self.count], like, made)
        forms = self.forms[slot]
        if SUMMED not in forms:
            stacked = self.stacked(slot, like)
            forms[SUMMED] = self.emit(aten.sum.dim_IntList, [stacked, [0]], like, made)
        return forms[SUMMED]


def _renamed(tree: Any, names: Dict[Slot, Slot]) -> Any:
    if isinstance(tree, Slot):
        return names[tree]
    if isinstance(tree, (list, tuple)):
        return type(tree)(_renamed(element, names) for element in tree)
    return tree
