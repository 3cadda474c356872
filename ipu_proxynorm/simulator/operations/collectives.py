"""Collectives as custom operators: PopART's own, and two that Graphcore's public add-ons compile.

PopART's (``op/collectives``): what they compute and what their gradient is. ``ReplicatedAllReduce``
has none: PopART ends the backward pass there, as at ``detach``. ``ReplicatedAllToAll`` and
``ReplicatedAllReduceTP`` are those of poptorch-experimental-addons.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .._impl import createPoptorchError
from ..machine.exchange import (
    AllGather,
    AllReduce,
    AllToAll,
    Collective,
    Grouping,
    Operator,
    ReduceScatter,
)
from ..trace import tracing

_GROUPING = "__collectiveReplicaGrouping"
_COMM_GROUP = "__collectiveCommGroup"
_OPERATOR = "__collectiveOperator"
_ALL, _CONSECUTIVE, _ORTHOGONAL = 0, 1, 2

_Attributes = Mapping[str, Any]


def _grouping(attributes: _Attributes, replicas: int) -> Grouping:
    """Return who exchanges with whom: all replicas, unless an attribute says otherwise."""
    given, kind = attributes.get(_GROUPING), attributes.get(_COMM_GROUP)
    if given is not None and kind is not None:
        raise createPoptorchError(
            f"Setting both attributes {_GROUPING} and {_COMM_GROUP} is not allowed."
        )
    if given:
        if len(given) != 3:
            raise createPoptorchError(
                f"{_GROUPING}={list(given)}: expected the number of replicas, stride and group "
                "size."
            )
        grouping = Grouping(*given)
    elif kind:
        grouping = _of_comm_group(kind, replicas)
    else:
        grouping = Grouping(replicas, 1, replicas)
    grouping.check(replicas)
    return grouping


def _of_comm_group(kind: Sequence[int], replicas: int) -> Grouping:
    if len(kind) != 2 or kind[0] not in (_ALL, _CONSECUTIVE, _ORTHOGONAL):
        raise createPoptorchError(
            f"{_COMM_GROUP}={list(kind)}: expected a kind, 0 (all), 1 (consecutive) or 2 "
            "(orthogonal), and a group size."
        )
    size = replicas if kind[0] == _ALL else kind[1]
    if size < 1 or replicas % size:
        raise createPoptorchError(
            f"{_COMM_GROUP}={list(kind)}: groups of {size} do not divide {replicas} replicas."
        )
    return Grouping(replicas, replicas // size if kind[0] == _ORTHOGONAL else 1, size)


class _Exchange(torch.autograd.Function):
    """Emits a collective in the forward pass and another in the backward pass.

    ``torch.autograd.Function`` is refused of users: this one's backward pass is recorded.
    """

    is_recorded = True

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, tensor: Tensor, forward: Optional[Collective], backward: Optional[Collective]
    ) -> Tensor:
        """Emit the collective of the forward pass; where there is none, a copy."""
        ctx.shape = tensor.shape
        ctx.collective = backward
        return tensor.clone() if forward is None else _emit(forward, tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None, None]:  # type: ignore[override]
        """Emit the collective of the backward pass; where there is none, pass the gradient on."""
        if ctx.collective is not None:
            gradient = _emit(ctx.collective, gradient)[: ctx.shape.numel()]
        return gradient.reshape(ctx.shape), None, None


def _emit(collective: Any, tensor: Tensor) -> Tensor:
    trace = tracing.current()
    assert trace is not None
    return trace.recorder.emit(collective, [trace.recorder.constant(tensor)], {})


def _all_gather(tensor: Tensor, grouping: Grouping, attributes: _Attributes) -> Tensor:
    backward = ReduceScatter(grouping, Operator.Local)
    return _Exchange.apply(tensor, AllGather(grouping), backward)


def _operator(attributes: _Attributes) -> Operator:
    number = attributes.get(_OPERATOR, Operator.Add)
    try:
        return Operator(number)
    except ValueError:
        known = ", ".join(f"{operator.value} ({operator.name})" for operator in Operator)
        raise createPoptorchError(f"{_OPERATOR}={number}: expected one of {known}.") from None


def _all_reduce(tensor: Tensor, grouping: Grouping, attributes: _Attributes) -> Tensor:
    collective = AllReduce(grouping, _operator(attributes))
    return _Exchange.apply(tensor.detach(), collective, None)


def _reduce_scatter(tensor: Tensor, grouping: Grouping, attributes: _Attributes) -> Tensor:
    operator = _operator(attributes)
    trace = tracing.current()
    if operator != Operator.Local and tensor.requires_grad and trace is not None and trace.training:
        raise createPoptorchError(
            "ReplicatedReduceScatter has a gradient with the collective operator Local only: "
            f"{operator.name} can be used on what is not trained, or after .detach()."
        )
    return _Exchange.apply(tensor, ReduceScatter(grouping, operator), AllGather(grouping))


def _all_to_all(tensor: Tensor, grouping: Grouping, attributes: _Attributes) -> Tensor:
    collective = AllToAll(grouping)
    return _Exchange.apply(tensor, collective, collective)


def _all_reduce_tp(tensor: Tensor, grouping: Grouping, attributes: _Attributes) -> Tensor:
    operator = _operator(attributes)
    if operator != Operator.Add:
        raise createPoptorchError(
            f"ReplicatedAllReduceTP: {operator.name} is asked for, but only Add is implemented."
        )
    collective = AllReduce(grouping, operator)
    if attributes.get("backwards", False):  # it stands in the backward pass instead
        return _Exchange.apply(tensor, None, collective)
    return _Exchange.apply(tensor, collective, None)


_COLLECTIVES: Dict[str, Callable[[Tensor, Grouping, _Attributes], Tensor]] = {
    "ReplicatedAllGather": _all_gather,
    "ReplicatedAllReduce": _all_reduce,
    "ReplicatedReduceScatter": _reduce_scatter,
    "ReplicatedAllToAll": _all_to_all,
    "AllToAll": _all_to_all,
    "ReplicatedAllReduceTP": _all_reduce_tp,
}


def is_collective(name: str, domain: str) -> bool:
    """Tell whether a custom operator is one of these."""
    return domain == "ai.graphcore" and name in _COLLECTIVES


def collective(
    inputs: Sequence[Tensor],
    name: str,
    example_outputs: Sequence[Tensor],
    attributes: _Attributes,
) -> List[Tensor]:
    """Apply a collective.

    Args:
        inputs: one tensor. PopART's second one, which links shards of weights, changes no value.
        name: the name of the operator.
        example_outputs: a tensor of the result's shape and type.
        attributes: grouping and reduction, by PopART's names.

    Raises:
        poptorch.Error: an attribute that PopART refuses, or a shape that the result does not have.

    """
    trace = tracing.current()
    if trace is None:  # PopTorch's operator does as much where there is no IPU
        return [example.clone() for example in example_outputs]
    grouping = _grouping(attributes, trace.replicas)
    result = _COLLECTIVES[name](inputs[0], grouping, attributes)
    shape = example_outputs[0].shape
    if shape.numel() != result.numel():
        raise createPoptorchError(
            f"{name} over groups of {grouping.size} replicas returns {result.numel()} elements, "
            f"but example_outputs have shape {list(shape)}."
        )
    return [result.reshape(shape)]
