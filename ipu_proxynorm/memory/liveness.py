"""How many bytes of activations and gradients live at once: sweeps over a stage's operators."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence, Set, Tuple

from ipu_proxynorm.memory.graph import Capture, OperatorRecord, TensorRecord
from ipu_proxynorm.memory.recomputing import recomputed, replayed

_MOVING = ("activation", "gradient", "weight_gradient", "input")


@dataclasses.dataclass(frozen=True)
class Moment:
    """What lives while one operator runs.

    Attributes:
        operator: its index in the capture.
        pass_: ``forward``, ``recompute`` or ``backward``.
        bytes: the bytes of the activations and gradients that are live.
    """

    operator: int
    pass_: str
    bytes: int


@dataclasses.dataclass(frozen=True)
class StageTensors:
    """What a stage keeps between its forward and its backward pass, as indices of tensors.

    Attributes:
        inputs: activations that come from earlier stages or from the host.
        saved: all that the backward pass reads and the forward pass had (inputs among them).
        checkpoints: kept although recomputation is on.
    """

    inputs: Tuple[int, ...]
    saved: Tuple[int, ...]
    checkpoints: Tuple[int, ...]


def stage_tensors(capture: Capture, stage: int, checkpoint_layers: Sequence[str]) -> StageTensors:
    """Return what a stage keeps; checkpoints are the model's and the named layers' outputs."""
    forward, backward = capture.forward(stage), capture.backward(stage)
    made = {index for o in forward for index in o.outputs}
    read = {index for o in forward for index in o.inputs}
    needed = {index for o in backward for index in o.inputs}
    tensors = capture.tensors

    def moving(index: int) -> bool:
        return tensors[index].role in ("activation", "input") and not _is_mask(tensors[index])

    before = forward[0].index if forward else 0
    inputs = [i for i in sorted(read - made) if moving(i) and tensors[i].producer < before]
    saved = [i for i in sorted(needed) if moving(i) and (i in made or tensors[i].producer < before)]
    marked = set(capture.checkpoints) | _outputs_of(capture, forward, checkpoint_layers)
    checkpoints = [i for i in saved if i in marked and i in made]
    return StageTensors(tuple(inputs), tuple(sorted({*saved})), tuple(checkpoints))


def _is_mask(tensor: TensorRecord) -> bool:
    """Whether PopART makes the tensor again from its seed: a dropout's mask."""
    return tensor.name == "native_dropout" and tensor.bytes == _numel(tensor)


def _numel(tensor: TensorRecord) -> int:
    numel = 1
    for size in tensor.shape:
        numel *= size
    return numel


def _outputs_of(
    capture: Capture, forward: Sequence[OperatorRecord], layers: Sequence[str]
) -> Set[int]:
    """Return the last tensor that each of the layers makes."""
    found: Set[int] = set()
    for layer in layers:
        inside = [o for o in forward if o.layer == layer or o.layer.startswith(f"{layer}.")]
        made = [i for o in inside for i in (o.outputs or o.inputs[:1])]
        found.update(made[-1:])
    return found


def bytes_of(capture: Capture, indices: Sequence[int]) -> int:
    """Return the bytes of tensors."""
    return sum(capture.tensors[i].bytes for i in indices)


def sweep(
    capture: Capture,
    operators: Sequence[Tuple[str, OperatorRecord]],
    kept: Sequence[int] = (),
) -> List[Moment]:
    """Return what lives while each of ``operators`` runs, in this order.

    A tensor lives from the operator that makes it to its last reader here, and from the beginning
    where none of the operators makes it. An operator's inputs and outputs live together, but for
    pointwise operators: one that is an input's last reader writes its result in its place, as
    PopART's and TensorFlow's compilers have it.

    Args:
        capture: the operators' own.
        operators: with the pass that each is part of.
        kept: tensors accounted for elsewhere, e.g. in the stash.
    """
    left_out = set(kept)
    first: Dict[int, int] = {}
    last: Dict[int, int] = {}
    for position, (_, operator) in enumerate(operators):
        for index in operator.outputs:
            if index not in left_out and capture.tensors[index].role in _MOVING:
                first.setdefault(index, position)
                last[index] = position
        for index in operator.inputs:
            if index not in left_out and capture.tensors[index].role in _MOVING:
                first.setdefault(index, 0)
                last[index] = position
    change = [0] * (len(operators) + 1)
    replaced = _replaced(capture, operators, first, last)
    for index, position in first.items():
        change[position] += capture.tensors[index].bytes
        change[last[index] + (index not in replaced)] -= capture.tensors[index].bytes
    moments, live = [], 0
    for position, (name, operator) in enumerate(operators):
        live += change[position]
        moments.append(Moment(operator.index, name, live))
    return moments


def _replaced(
    capture: Capture,
    operators: Sequence[Tuple[str, OperatorRecord]],
    first: Dict[int, int],
    last: Dict[int, int],
) -> Set[int]:
    """Return the tensors in whose place their last reader writes its result."""
    found = set()
    for position, (_, operator) in enumerate(operators):
        # Batch Norm in inference scales and shifts.
        in_place = operator.is_pointwise or (not capture.training and "batch_norm" in operator.name)
        if not in_place or not operator.outputs or operator.outputs[0] not in first:
            continue
        size = capture.tensors[operator.outputs[0]].bytes
        for index in operator.inputs:
            ends_here = last.get(index) == position and first[index] < position
            if ends_here and capture.tensors[index].bytes == size:
                found.add(index)
                break
    return found


def stage_moments(
    capture: Capture, stage: int, keeping: str, checkpoint_layers: Sequence[str] = ()
) -> List[Moment]:
    """Return what lives during one micro-batch's passes over a stage, beside the stash.

    Args:
        capture: the capture of the program.
        stage: its number.
        keeping: ``recompute``: the forward pass runs once to hand on its outputs, keeping nothing,
            and again before the backward pass, with checkpoints segment by segment from the last;
            ``stash``: what the backward pass reads waits in the stash; ``live``: it lives from the
            forward pass on; ``before``, ``standard`` and ``norms``: likewise, but for what runs
            again, see `recomputing.recomputed`.
        checkpoint_layers: layers whose outputs are checkpoints, beside the model's own.
    """
    forward = [("forward", o) for o in capture.forward(stage)]
    backward = [("backward", o) for o in capture.backward(stage)]
    if keeping == "live" or not backward:
        return sweep(capture, [*forward, *backward])
    own = stage_tensors(capture, stage, checkpoint_layers)
    if keeping in ("before", "standard", "norms"):
        left = recomputed(capture, stage, keeping, own.checkpoints)
        return sweep(*replayed(capture, stage, left))
    if keeping == "stash":
        return [*sweep(capture, forward), *sweep(capture, backward, kept=own.saved)]
    held = [*own.inputs, *own.checkpoints]
    moments = sweep(capture, forward, kept=held)
    for segment, gradients in segments(capture, stage, own.checkpoints):
        again = [("recompute", o) for o in segment]
        moments += sweep(capture, [*again, *(("backward", o) for o in gradients)], kept=held)
    return moments


def segments(
    capture: Capture, stage: int, checkpoints: Sequence[int]
) -> List[Tuple[List[OperatorRecord], List[OperatorRecord]]]:
    """Return the parts of a stage between checkpoints, the last first, with their gradients."""
    forward, backward = capture.forward(stage), capture.backward(stage)
    ends = sorted({capture.tensors[i].producer for i in checkpoints})
    bounds = [-1, *ends, forward[-1].index if forward else 0]
    parts = []
    for low, high in zip(bounds, bounds[1:]):
        again = [o for o in forward if low < o.index <= high]
        gradients = [o for o in backward if low < o.source <= high]
        if again or gradients:
            parts.append((again, gradients))
    return parts[::-1]
