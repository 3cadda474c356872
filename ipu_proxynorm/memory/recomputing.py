"""Which operators PopART computes again in the backward pass, and in what order all then run."""

from __future__ import annotations

import dataclasses
import math
from typing import Dict, List, Sequence, Set, Tuple

from ipu_proxynorm.memory.graph import Capture, OperatorRecord, TensorRecord

#: Normalizations, by aten's names: PopART's batch, group and instance norms.
_NORMS = ("native_group_norm", "native_layer_norm", "native_batch_norm", "_native_batch_norm_legit")

Pass = Tuple[str, OperatorRecord]


def intervals(count: int) -> List[Tuple[int, int]]:
    """Return PopART's intervals of ``count`` operators: ever shorter, then of one each.

    Source: PopART 3.4.0, ``willow/src/intervals.cpp:10``.
    """
    if count == 1:
        return [(0, 1)]
    size = int((int(math.sqrt(2.0 * count)) - 1) * 0.75)
    found, start = [], 0
    while start + size <= count and size > 0:
        found.append((start, start + size))
        start, size = start + size, size - 1
    return found + [(at, at + 1) for at in range(start, count)]


def kept_by_standard(capture: Capture, operators: Sequence[OperatorRecord]) -> Set[int]:
    """Return the operators, by index, whose results ``RecomputationType::Standard`` keeps.

    In each interval the set of live results that is smallest: those that a later one of
    ``operators``, the forward pass, still reads.

    Source: PopART 3.4.0, ``willow/src/recompute.cpp:64-150``.
    """
    last_read: Dict[int, int] = {}
    for position, operator in enumerate(operators):
        last_read.update(dict.fromkeys(operator.inputs, position))
    made = [sum(capture.tensors[i].bytes for i in operator.outputs) for operator in operators]
    ends = [
        max((last_read.get(i, position) for i in operator.outputs), default=position)
        for position, operator in enumerate(operators)
    ]
    live = [  # one that nothing reads again is live where it runs alone
        [at for at in range(position + 1) if ends[at] > position or at == position]
        for position in range(len(operators))
    ]
    kept: Set[int] = set()
    for first, last in intervals(len(operators)) if operators else ():
        best = min(live[first:last], key=lambda own: sum(made[at] for at in own))
        kept.update(operators[at].index for at in best)
    return kept


def recomputed(
    capture: Capture, stage: int, keeping: str, checkpoints: Sequence[int]
) -> List[OperatorRecord]:
    """Return the forward operators of a stage that may run again in the backward pass.

    Args:
        capture: of the program.
        stage: its number.
        keeping: see `budget.keeping`.
        checkpoints: tensors that are kept.
    """
    forward = capture.forward(stage)
    if keeping == "recompute":
        return forward
    if keeping == "standard":
        kept = kept_by_standard(capture, forward)
        return _with_all_writers(forward, [o for o in forward if o.index not in kept])
    if keeping == "norms":
        return _with_all_writers(forward, [o for o in forward if o.name in _NORMS])
    if keeping == "before":
        marked = set(checkpoints)
        last = max((capture.tensors[i].producer for i in marked), default=-1)
        again = [o for o in forward if o.index < last and not marked.intersection(o.outputs)]
        return _with_all_writers(forward, again)
    return []


def _with_all_writers(
    forward: Sequence[OperatorRecord], again: Sequence[OperatorRecord]
) -> List[OperatorRecord]:
    """Leave out operators whose results another writes to in place, and that other not again.

    Such a result is the other's: PopART has a tensor of its own for it, which is kept.
    """
    written = _writers(forward)
    chosen = {operator.index for operator in again}
    return [
        operator
        for operator in again
        if all(w.index in chosen for index in operator.outputs for w in written[index])
    ]


def _writers(forward: Sequence[OperatorRecord]) -> Dict[int, List[OperatorRecord]]:
    """Return by tensor the operators that write to it; one without results does so in place."""
    writers: Dict[int, List[OperatorRecord]] = {}
    for operator in forward:
        for index in operator.outputs or operator.inputs[:1]:
            writers.setdefault(index, []).append(operator)
    return writers


def run_again(
    capture: Capture, stage: int, keeping: str, checkpoints: Sequence[int]
) -> List[OperatorRecord]:
    """Return those of `recomputed` that the backward pass needs, and so run; others never do."""
    again = recomputed(capture, stage, keeping, checkpoints)
    if keeping == "recompute" or not again:
        return again
    passes = replayed(capture, stage, again)[1]
    return [capture.operators[o.index] for name, o in passes if name == "recompute"]


def replayed(
    capture: Capture, stage: int, again: Sequence[OperatorRecord]
) -> Tuple[Capture, List[Pass]]:
    """Return a stage's operators with some run again where the backward pass first needs them.

    What is computed again are tensors of their own, added to those of the capture returned: the
    first ones are gone after their last use in the forward pass.

    Args:
        capture: of the program.
        stage: its number.
        again: forward operators that run again.
    """
    forward, backward = capture.forward(stage), capture.backward(stage)
    writers = _writers(forward)
    left = {operator.index for operator in again}
    tensors: List[TensorRecord] = list(capture.tensors)
    copies: Dict[int, int] = {}

    def needed(read: Sequence[int]) -> List[OperatorRecord]:
        """Return the operators that these tensors want run again, in order."""
        found: Dict[int, OperatorRecord] = {}
        stack = list(read)
        while stack:
            for operator in writers.get(stack.pop(), ()):
                if operator.index in left:
                    left.remove(operator.index)
                    found[operator.index] = operator
                    stack.extend(operator.inputs)
        return [found[index] for index in sorted(found)]

    def mapped(operator: OperatorRecord) -> OperatorRecord:
        return dataclasses.replace(
            operator,
            inputs=tuple(copies.get(index, index) for index in operator.inputs),
            outputs=tuple(copies.get(index, index) for index in operator.outputs),
        )

    passes: List[Pass] = [("forward", operator) for operator in forward]
    for operator in backward:
        for earlier in needed(operator.inputs):
            for index in earlier.outputs:
                copies[index] = len(tensors)
                tensors.append(dataclasses.replace(tensors[index], index=len(tensors)))
            passes.append(("recompute", mapped(earlier)))
        passes.append(("backward", mapped(operator)))
    return dataclasses.replace(capture, tensors=tuple(tensors)), passes
