"""Loops and branches that run on the device: ``for_loop`` and ``cond``."""

from __future__ import annotations

from typing import Any, Callable, List, NamedTuple, Type, TypeVar

import torch

from .. import _impl
from ..trace import refusals, tracing
from ..trace.recorder import Recorder, active
from ..trace.tape import Block, Branch, Loop, Slot

Tensors = List[torch.Tensor]


def _as_list(result: Any) -> Tensors:
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _kind(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def for_loop(count: int, body: Callable, inputs: Tensors) -> Tensors:
    """Run ``body`` ``count`` times on the device, each time on the results of the time before.

    Args:
        count: how many times.
        body: takes as many tensors as it returns; compiled once.
        inputs: the tensors of the first time, passed by value.

    Raises:
        ValueError: ``inputs`` is not a list of tensors.
        poptorch.Error: the body returns other tensors than it takes, in number, shape or type; or
            the model is trained.

    """
    if not isinstance(inputs, list):
        raise ValueError(
            "poptorch.for_loop expects input tensors (inputs) to be a list of tensors. "
            "(Object is not list)"
        )
    for index, tensor in enumerate(inputs):
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(
                "poptorch.for_loop expects input tensors (inputs) to be a list of tensors. "
                f"(Object contained in list at index {index} is not torch.tensor)"
            )
    recorder = active()
    tracing.check_inference("for_loop", "write a Python loop, which compiling unrolls")
    if recorder is None:
        results = [tensor.clone() for tensor in inputs]
        for _ in range(count):
            results = _as_list(body(*results))
        return results
    carried = [tensor.clone() for tensor in inputs]
    start_for_loop(carried)
    outputs = [tensor.clone() for tensor in _as_list(body(*carried))]
    return end_for_loop(outputs, carried, count)


def cond(
    condition: torch.Tensor,
    then_body: Callable,
    then_inps: Tensors,
    else_body: Callable,
    else_inps: Tensors,
) -> Tensors:
    """Run one of two functions on the device, as a tensor's value says at run time.

    Args:
        condition: one boolean.
        then_body: runs where it is True; must return as many tensors as ``else_body``.
        then_inps: its inputs, passed by value.
        else_body: runs where it is False.
        else_inps: its inputs, passed by value.

    Raises:
        ValueError: the inputs are not lists.
        poptorch.Error: the results of the two differ in number, shape or type; or the model is
            trained.

    """
    if not isinstance(then_inps, list) or not isinstance(else_inps, list):
        raise ValueError(
            "poptorch.cond expects then_inps and else_inps tensors to be a list of tensors. "
            "(Object is not list)"
        )
    recorder = active()
    tracing.check_inference("cond", "compute both and choose with torch.where")
    if recorder is None:
        return _as_list(then_body(*then_inps) if condition else else_body(*else_inps))
    tested = condition.clone()
    start_if_block(tested)
    outputs = [t.clone() for t in _as_list(then_body(*[t.clone() for t in then_inps]))]
    start_else_block(outputs)
    outputs = [t.clone() for t in _as_list(else_body(*[t.clone() for t in else_inps]))]
    return end_if_block(outputs, tested)


# ---- the operators that bracket them -------------------------------------------------------------


class _OpenBlock:
    """A block of operations that has begun, as the recorder notes it."""

    def __init__(self, recorder: Recorder) -> None:
        self._nested = recorder.nested()
        self.block = self._nested.__enter__()

    def close(self, results: List[Slot]) -> Block:
        """Let operations go on outside, and return the block."""
        self._nested.__exit__(None, None, None)
        self.block.results = results
        return self.block


class _OpenLoop(NamedTuple):
    body: _OpenBlock
    initial: List[Slot]


class _OpenBranch(NamedTuple):
    then: _OpenBlock
    outputs: Tensors


_OpenT = TypeVar("_OpenT")


def _innermost(trace: tracing.Trace, kind: Type[_OpenT], name: str, before: str) -> _OpenT:
    if not trace.open_blocks or not isinstance(trace.open_blocks[-1], kind):
        raise refusals.refuse(
            f"torch.ops.poptorch.{name} without {before} before it", trace.recorder.where()
        )
    return trace.open_blocks.pop()


def start_for_loop(inputs: Tensors) -> None:
    """Begin the body of a loop, in which ``inputs`` are what the time before has left."""
    tracing.check_inference("for_loop", "write a Python loop, which compiling unrolls")
    trace = tracing.current()
    if trace is None:
        return
    recorder = trace.recorder
    initial = recorder.slots_of(inputs)
    for tensor in inputs:
        recorder.new_slot(tensor)
    trace.open_blocks.append(_OpenLoop(_OpenBlock(recorder), initial))


def end_for_loop(outputs: Tensors, inputs: Tensors, trip_count: int) -> Tensors:
    """End the body of a loop and return the results of its last time.

    Raises:
        poptorch.Error: the results are other tensors than ``inputs``, in number, shape or type; or
            no loop has begun.

    """
    trace = tracing.current()
    if trace is None:
        return outputs
    recorder = trace.recorder
    loop = _innermost(trace, _OpenLoop, "end_for_loop", "start_for_loop")
    block = loop.body.close(recorder.slots_of(outputs))
    if len(outputs) != len(inputs):
        raise _impl.createPoptorchError(
            f"poptorch.for_loop: the body takes {len(inputs)} tensors but returns {len(outputs)}; "
            "it must return as many as it takes."
        )
    for index, (taken, given) in enumerate(zip(inputs, outputs)):
        if _kind(taken) != _kind(given):
            raise _impl.createPoptorchError(
                f"poptorch.for_loop: the body takes {_kind(taken)} as input {index} but returns "
                f"{_kind(given)} in its place, which the next time could not take: shapes and "
                "types are fixed when the model is compiled."
            )
    carried = recorder.slots_of(inputs)
    recorder.block.operations.append(
        Loop(trip_count, block, loop.initial, carried, recorder.where())
    )
    results = [recorder.fresh(tensor, slot) for tensor, slot in zip(outputs, carried)]
    for tensor, slot in zip(inputs, loop.initial):
        recorder.stands_for(tensor, slot)
    return results


def start_if_block(condition: torch.Tensor) -> None:
    """Begin what runs where ``condition``, one boolean or integer, is True.

    Raises:
        poptorch.Error: the condition has several elements (PopART ``popx/op/ifx.cpp:176``), or is
            a float, which no program of Poplar's branches on; or the model is trained.

    """
    tracing.check_inference("cond", "compute both and choose with torch.where")
    trace = tracing.current()
    if trace is None:
        return
    if condition.numel() != 1 or condition.is_floating_point():
        raise refusals.refuse(
            f"poptorch.cond: the condition must be one boolean but is {condition.dtype} of shape "
            f"{tuple(condition.shape)}: write (tensor > 0).all(), for instance",
            trace.recorder.where(),
        )
    trace.open_blocks.append(_OpenBlock(trace.recorder))


def start_else_block(outputs_true: Tensors) -> None:
    """Begin what runs where the condition is False.

    Raises:
        poptorch.Error: no ``start_if_block`` before it.

    """
    trace = tracing.current()
    if trace is None:
        return
    then = _innermost(trace, _OpenBlock, "start_else_block", "start_if_block")
    then.close(trace.recorder.slots_of(outputs_true))
    trace.open_blocks.append(_OpenBranch(then, outputs_true))
    trace.open_blocks.append(_OpenBlock(trace.recorder))


def end_if_block(outputs: Tensors, condition: torch.Tensor) -> Tensors:
    """End both and return the results of the one that runs.

    Raises:
        poptorch.Error: the results of the two differ in number, shape or type; or one is missing.

    """
    trace = tracing.current()
    if trace is None:
        return outputs
    recorder = trace.recorder
    otherwise = _innermost(trace, _OpenBlock, "end_if_block", "start_else_block")
    otherwise.close(recorder.slots_of(outputs))
    branch = _innermost(trace, _OpenBranch, "end_if_block", "start_else_block")
    if len(branch.outputs) != len(outputs):
        raise _impl.createPoptorchError(
            f"poptorch.cond: then_body returns {len(branch.outputs)} tensors but else_body "
            f"{len(outputs)}; both must return as many."
        )
    for index, (one, other) in enumerate(zip(branch.outputs, outputs)):
        if _kind(one) != _kind(other):
            raise _impl.createPoptorchError(
                f"poptorch.cond: result {index} of then_body is {_kind(one)} but that of else_body "
                f"{_kind(other)}: shapes and types are fixed when the model is compiled."
            )
        if other.dim() == 0:  # AddSubgraphConnectionNodes.cpp:157
            raise _impl.createPoptorchError(
                f"poptorch.cond: result {index} of else_body has no dimensions, which PopTorch "
                "takes for an unknown shape: return it with one (reshape(1))."
            )
    values = [
        recorder.fresh(tensor)
        for tensor in (branch.outputs if recorder.value_of(condition) else outputs)
    ]
    (tested,) = recorder.slots_of([condition])
    recorder.block.operations.append(
        Branch(
            tested,
            branch.then.block,
            otherwise.block,
            recorder.slots_of(values),
            recorder.where(),
        )
    )
    return values
