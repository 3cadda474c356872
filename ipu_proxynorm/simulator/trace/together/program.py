"""A program of several micro-batches, made of the recorded program of one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple

import torch

from .. import compute_device
from ..consistency import Traced
from ..optimize.functional import functional
from ..optimize.graph import Graph, is_named, substituted, written_by
from ..optimize.passes import Executable, executable, numbers_after
from ..tape import (
    Block,
    Operation,
    Slot,
    Step,
    makes,
    slots_in,
    to_function,
    uses,
    without_dead_code,
)
from .draws import separated
from .each import Each
from .rules import rule_of
from .sums import is_linear, only_summed
from .values import STACKED, SUMMED, Form, NotTogether, Values, aten

_SMALL = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Signature:
    """What a recorded program takes and returns, by slots.

    Attributes:
        parameters: the same for all micro-batches.
        buffers: the buffers of a replica.
        inputs: the inputs of a micro-batch; those of no dimension are the same for all.
        scaling: the loss scaling.
        outputs: what is returned for each micro-batch.
        gradients: of which the sum is returned.
        constants: tensors that are part of the program.

    """

    parameters: List[Slot]
    buffers: List[Slot]
    inputs: List[Slot]
    scaling: Slot
    outputs: List[Slot]
    gradients: List[Slot]
    constants: Dict[Slot, torch.Tensor]


class Together:
    """A program of several micro-batches.

    Args:
        block: a micro-batch's, as recorded, on its device.
        signature: the signature of the recorded program.
        traced: shapes and types of its arguments and constants.
        device: that computes it.

    Raises:
        NotTogether: micro-batches depend on one another, or have effects whose order counts.

    """

    def __init__(
        self,
        block: Block,
        signature: Signature,
        traced: Dict[Slot, Traced],
        device: torch.device = compute_device.HOST,
    ) -> None:
        self._signature = signature
        self._device = device
        self._arguments = [
            *signature.parameters, *signature.buffers, *signature.inputs, signature.scaling,
        ]  # fmt: skip
        held = [*self._arguments, *signature.constants]
        block = _without_unused_statistics(block)
        block = functional(block, held, numbers_after(block, held))
        graph = Graph(block, held)
        graph.traced.update(traced)
        self._new_slot = numbers_after(block, held)
        _check_steps(block, graph, signature)
        same = [*signature.parameters, *signature.constants]
        self._draws = separated(block, same, graph, self._new_slot)
        self._rest = Block(self._draws.rest, block.results)
        self._graph = Graph(self._rest, [*held, *self._draws.block.results])
        self._graph.traced.update(graph.traced)
        #: Positions of the buffers that the program writes to.
        self.listed = [s for s in signature.buffers if graph.is_written(s)]
        self._differing = self._find_differing()
        self._check_writes()
        self._sums = only_summed(self._rest, self._differing, signature.gradients, self._graph)
        self._draw: Optional[Callable[..., List[torch.Tensor]]] = None
        if self._draws.block.operations:
            self._draw = to_function(self._draws.block, self._arguments, signature.constants)
        self._programs: Dict[int, Tuple[Executable, List[bool]]] = {}

    @property
    def listed_buffers(self) -> List[bool]:
        """Tell of each buffer whether the program writes to it."""
        return [slot in self.listed for slot in self._signature.buffers]

    @property
    def draws(self) -> bool:
        """Tell whether random numbers are drawn."""
        return self._draw is not None

    def draw(self, arguments: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Draw one micro-batch's random numbers, given the program's arguments."""
        assert self._draw is not None
        return self._draw(*arguments)

    def _find_differing(self) -> Set[Slot]:
        signature, graph = self._signature, self._graph
        differing = {s for s in signature.inputs if len(graph.traced[s].shape)}
        differing |= set(self._draws.block.results) | set(self.listed)
        for step in self._rest.operations:
            if uses(step) & differing:
                differing.update(makes(step))
        return differing - set(self.listed)

    def _check_writes(self) -> None:
        """Refuse what writes to a tensor that differs between micro-batches but is shared."""
        graph = self._graph
        for step in self._rest.operations:
            differs = uses(step) & self._differing
            for slot in written_by(step):
                if slot in self.listed:
                    continue
                if differs and slot not in self._differing:
                    raise NotTogether(f"{_name(step)} writes a micro-batch's values to one tensor")
                if differs and graph.sharing(slot) != {slot}:
                    raise NotTogether(f"{_name(step)} writes to a part of a tensor")
        for slot in self.listed:
            if graph.sharing(slot) != {slot} or len(graph.readers.get(slot, ())) > 1:
                raise NotTogether(
                    "a buffer that changes with each micro-batch is read elsewhere as well"
                )

    # ---- programs ---------------------------------------------------------------------------

    def of(self, count: int) -> Tuple[Executable, List[bool]]:
        """Return the program of ``count`` micro-batches, and whether each output differs.

        It takes the parameters, the buffers (one that it writes to as a list, a tensor for each
        micro-batch), the inputs with the micro-batches one after the other in dimension 0, the loss
        scaling, and what was drawn, stacked. It returns the outputs, and the gradients' sums.
        """
        if count not in self._programs:
            self._programs[count] = self._make(count)
        return self._programs[count]

    def _make(self, count: int) -> Tuple[Executable, List[bool]]:
        signature = self._signature
        values = Values(count, dict(self._graph.traced), self._new_slot, self._sums)
        arguments = [*signature.parameters, *signature.buffers]
        for slot in signature.inputs:
            if slot in self._differing:
                values.set(slot, 0, slot)
            arguments.append(slot)
        arguments.append(signature.scaling)
        for slot in self._draws.block.results:
            values.set(slot, STACKED, slot)
            arguments.append(slot)
        for step in self._rest.operations:
            assert isinstance(step, Operation)
            self._take(values, step)
        results, forms = self._results(values)
        program = executable(
            Block(values.steps, results),
            arguments,
            len(signature.parameters),
            signature.constants,
            self._device,
        )
        return program, forms

    def _take(self, values: Values, step: Operation) -> None:
        """Add what stands for one recorded operation."""
        differing = [slot for slot in uses(step) if values.differs(slot)]
        listed = [slot for slot in uses(step) if slot in self.listed]
        if not differing and not listed:
            values.steps.append(step)
            return
        outputs = makes(step)
        if not listed:
            only = [slot for slot in differing if list(values.forms[slot]) == [SUMMED]]
            if only and not self._sum_of(values, step):
                raise NotTogether(f"{step.name} reads a sum over the micro-batches")
            if not only:
                rule = rule_of(step)
                if rule is None or not rule(values, step):
                    self._call_each(values, step, listed)
        else:
            self._call_each(values, step, listed)
        for slot in outputs:
            if slot in self._sums and slot in values.forms:
                values.set(slot, SUMMED, values.summed(slot, step))

    def _sum_of(self, values: Values, step: Operation) -> bool:
        """Call a linear operator with sums."""
        slots = [slot for slot in uses(step) if values.differs(slot)]
        linear = [is_linear(step, s, self._differing, self._sums, self._graph) for s in slots]
        if not any(linear):
            return False
        instead = {slot: values.summed(slot, step) for slot in slots}
        args = substituted(list(step.args), instead)
        outputs = makes(step)
        values.call(step, args, step.kwargs, [SUMMED] * len(outputs))
        return True

    def _call_each(self, values: Values, step: Operation, listed: Sequence[Slot]) -> None:
        """Call an operator for one micro-batch after the other."""
        written = step.keeps
        slots = list(dict.fromkeys(slots_in((step.args, step.kwargs))))
        stacked = [at for at, slot in enumerate(slots) if values.differs(slot)]
        lists = [at for at, slot in enumerate(slots) if slot in listed]
        flat = [values.stacked(slot, step) if values.differs(slot) else slot for slot in slots]
        if written and not listed:
            for slot in slots:
                if values.differs(slot) and self._graph.is_written(slot):
                    values.set(slot, STACKED, values.stacked(slot, step))
        outputs = makes(step)
        sums = [slot in self._sums for slot in outputs]
        arguments = (list(step.args), dict(step.kwargs))

        def build(own: Sequence[Any]) -> Any:
            return _filled(arguments, dict(zip(slots, own)))

        function = Each(step.function, build, values.count, stacked, lists, step.outputs, sums)
        names: List[Slot] = []
        known: Dict[Slot, Traced] = {}
        for slot, is_sum in zip(outputs, sums):
            form: Form = SUMMED if is_sum else STACKED
            new = self._new_slot()
            known[new] = Traced(values.form_shape(slot, form), values.traced[slot].dtype)
            values.set(slot, form, new)
            names.append(new)
        values.steps.append(
            Operation(
                function,
                flat,
                {},
                tuple(names) if names else None,
                step.origin,
                keeps=written,
                makes=known,
            )
        )

    def _results(self, values: Values) -> Tuple[List[Slot], List[bool]]:
        signature = self._signature
        end = Operation(aten.clone.default, [], {}, None, _nowhere(self._rest))
        results: List[Slot] = []
        differ: List[bool] = []
        for slot in signature.outputs:
            differ.append(values.differs(slot))
            results.append(values.stacked(slot, end) if differ[-1] else slot)
        results += [values.summed(slot, end) for slot in signature.gradients]
        return results, differ


def _check_steps(block: Block, graph: Graph, signature: Signature) -> None:
    """Refuse what must happen for one micro-batch after the other.

    Raises:
        NotTogether: says what it is.

    """
    for slot in signature.gradients:
        if slot in graph.traced and graph.traced[slot].dtype in _SMALL:
            raise NotTogether("gradients are rounded to float16 for each micro-batch")
    for step in block.operations:
        if not isinstance(step, Operation):
            raise NotTogether("a branch or a loop depends on values")
        if getattr(step.function, "_schema", None) is None:
            raise NotTogether(f"{step.name} is called for each micro-batch")
        for slot in written_by(step):
            if graph.is_held(slot) and slot not in signature.buffers:
                raise NotTogether(f"{step.name} writes to an argument of the program")


def _without_unused_statistics(block: Block) -> Block:
    """Return the block in which a batch norm's gradients read no running statistics.

    In training they read those of the micro-batch alone.
    """
    steps: List[Step] = []
    for step in block.operations:
        if is_named(step, "native_batch_norm_backward.default"):
            assert isinstance(step, Operation)
            if step.args[7]:
                args = [*step.args[:3], None, None, *step.args[5:]]
                step = replace(step, args=args)
        steps.append(step)
    return without_dead_code(Block(steps, list(block.results)))


def _name(step: Step) -> str:
    return step.name if isinstance(step, Operation) else "a branch or a loop"


def _filled(tree: Any, values: Dict[Slot, Any]) -> Any:
    if isinstance(tree, Slot):
        return values[tree]
    if isinstance(tree, (list, tuple)):
        return type(tree)(_filled(element, values) for element in tree)
    if isinstance(tree, dict):
        return {key: _filled(value, values) for key, value in tree.items()}
    return tree


def _nowhere(block: Block) -> Any:
    return block.operations[-1].origin  # type: ignore[union-attr]
