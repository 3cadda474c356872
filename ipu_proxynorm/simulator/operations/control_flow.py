"""Loops and branches that run on the device: ``for_loop`` and ``cond``."""

from __future__ import annotations

from typing import Any, Callable, List

import torch

from .. import _impl
from ..trace import tracing
from ..trace.recorder import active
from ..trace.tape import Block, Branch, Loop

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
    initial = [tensor.clone() for tensor in inputs]
    carried = [recorder.fresh(tensor) for tensor in initial]
    slots = recorder.slots_of(carried)
    with recorder.nested() as block:
        outputs = [tensor.clone() for tensor in _as_list(body(*carried))]
        block.results = recorder.slots_of(outputs)
    if len(outputs) != len(inputs):
        raise _impl.createPoptorchError(
            f"poptorch.for_loop: the body takes {len(inputs)} tensors but returns {len(outputs)}; "
            "it must return as many as it takes."
        )
    for index, (taken, given) in enumerate(zip(carried, outputs)):
        if _kind(taken) != _kind(given):
            raise _impl.createPoptorchError(
                f"poptorch.for_loop: the body takes {_kind(taken)} as input {index} but returns "
                f"{_kind(given)} in its place, which the next time could not take: shapes and "
                "types are fixed when the model is compiled."
            )
    loop = Loop(count, block, recorder.slots_of(initial), slots, recorder.where())
    recorder.block.operations.append(loop)
    return [recorder.fresh(tensor, slot) for tensor, slot in zip(outputs, slots)]


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
    blocks: List[Block] = []
    outputs: List[Tensors] = []
    for body, inputs in ((then_body, then_inps), (else_body, else_inps)):
        with recorder.nested() as block:
            copies = [tensor.clone() for tensor in inputs]
            outputs.append([tensor.clone() for tensor in _as_list(body(*copies))])
            block.results = recorder.slots_of(outputs[-1])
        blocks.append(block)
    if len(outputs[0]) != len(outputs[1]):
        raise _impl.createPoptorchError(
            f"poptorch.cond: then_body returns {len(outputs[0])} tensors but else_body "
            f"{len(outputs[1])}; both must return as many."
        )
    for index, (one, other) in enumerate(zip(*outputs)):
        if _kind(one) != _kind(other):
            raise _impl.createPoptorchError(
                f"poptorch.cond: result {index} of then_body is {_kind(one)} but that of else_body "
                f"{_kind(other)}: shapes and types are fixed when the model is compiled."
            )
    values = [recorder.fresh(t) for t in outputs[0 if recorder.value_of(tested) else 1]]
    slots = recorder.slots_of(values)
    tested_slot = recorder.slots_of([tested])[0]
    recorder.block.operations.append(
        Branch(tested_slot, blocks[0], blocks[1], slots, recorder.where())
    )
    return values
