"""Operations that mark tensors: checkpoints, losses, memory, overlap, names; few change a value."""

from __future__ import annotations

from typing import Any

import torch

from .. import _impl, enums
from .._utils import flattenTensorStructure, reconstructTensorStructure
from ..trace import refusals, tracing


def _identity(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor as a new one, through which gradients pass."""
    return tensor.view_as(tensor)


def nop(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor; the compiler never removes the operation.

    Raises:
        poptorch.Error: ``tensor`` is no tensor.

    """
    if not isinstance(tensor, torch.Tensor):
        raise _impl.createPoptorchError(
            f"nop must take a torch.tensor argument. {type(tensor)} is not supported."
        )
    return _identity(tensor)


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Mark tensors to be kept for the backward pass where others are recomputed.

    Args:
        tensors: one or more tensors, or one list or tuple of them.

    Returns:
        The tensors: one alone, several as a tuple, a list or tuple as such.

    Raises:
        ValueError: something else than a tensor.

    """
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        return type(tensors[0])(recomputationCheckpoint(tensor) for tensor in tensors[0])
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise ValueError("All inputs must be tensors")
    checkpoints = tuple(tracing.checkpoint(_identity(tensor)) for tensor in tensors)
    return checkpoints[0] if len(checkpoints) == 1 else checkpoints


def serializedMatMul(
    lhs: torch.Tensor,
    rhs: torch.Tensor,
    mode: enums.MatMulSerializationMode,
    factor: int = 0,
    keep_precision: bool = False,
) -> torch.Tensor:
    """Return the matrix product, which the device computes in ``factor`` parts to save memory.

    Args:
        lhs: (..., m, n).
        rhs: (..., n, p).
        mode: which dimension is split.
        factor: into how many parts.
        keep_precision: add float16 parts in float32.

    Raises:
        poptorch.Error: the dimension is no multiple of ``factor``.

    """
    assert isinstance(keep_precision, bool)
    assert isinstance(factor, int)
    assert isinstance(mode, enums.MatMulSerializationMode)
    _check_parts(lhs, rhs, mode, factor)
    return torch.matmul(lhs, rhs)


def _check_parts(
    lhs: torch.Tensor, rhs: torch.Tensor, mode: enums.MatMulSerializationMode, factor: int
) -> None:
    """Refuse parts of different sizes, as PopART does (op/matmul.cpp:240-285)."""
    trace = tracing.current()
    if trace is None or mode == enums.MatMulSerializationMode.Disabled or lhs.dim() < 2:
        return
    size = rhs.shape[-1]
    if mode == enums.MatMulSerializationMode.ReducingDim:
        size = lhs.shape[-1]
    elif mode == enums.MatMulSerializationMode.InputChannels:
        # Torch takes all leading dimensions as one where the right side is one matrix.
        size = lhs.shape[:-1].numel() if rhs.dim() == 2 else lhs.shape[-2]
    if factor < 1 or size % factor:
        raise refusals.refuse(
            f"poptorch.serializedMatMul: {mode.name} has {size} elements, which factor={factor} "
            "does not divide: give a factor that does, or MatMulSerializationMode.Disabled",
            trace.recorder.where(),
        )


def set_available_memory(tensor: torch.Tensor, available_memory_proportion: float) -> torch.Tensor:
    """Set the share of SRAM for temporary data of the operation that made the tensor.

    Args:
        tensor: the operation's output, returned as it is.
        available_memory_proportion: above 0, up to 1.

    Raises:
        poptorch.Error: ``tensor`` is no tensor, or the proportion is out of range.

    """
    if not isinstance(tensor, torch.Tensor):
        raise _impl.createPoptorchError(
            "You may only set available memory for torch.tensor values. "
            f"{type(tensor)} is not supported."
        )
    trace = tracing.current()
    if trace is not None and not 0 < available_memory_proportion <= 1:  # PopART's builder.cpp:1782
        raise refusals.refuse(
            f"availableMemoryProportion must be in (0,1] but is {available_memory_proportion}",
            trace.recorder.where(),
        )
    return _identity(tensor)


def _set_overlap(tensors: Any, mode: enums.OverlapMode, kind: str) -> Any:
    def mark(tensor: Any) -> torch.Tensor:
        if not isinstance(tensor, torch.Tensor):
            raise _impl.createPoptorchError(
                f"You may only set overlap for torch.tensor {kind}s. "
                f"{type(tensor)} is not supported."
            )
        return tracing.overlapped(_identity(tensor), tensor, kind, mode)

    flat = [mark(tensor) for tensor in flattenTensorStructure(tensors)]
    return reconstructTensorStructure(tensors, flat)


def set_overlap_for_input(input_tensors: Any, mode: enums.OverlapMode) -> Any:
    """Overlap the transfer of inputs with computation; call it first thing in ``forward``.

    Args:
        input_tensors: a tensor, or tuples, lists and dictionaries of them.
        mode: how far they overlap.

    """
    return _set_overlap(input_tensors, mode, "input")


def set_overlap_for_output(output_tensors: Any, mode: enums.OverlapMode) -> Any:
    """Overlap the transfer of outputs with computation; call it just before returning them.

    Args:
        output_tensors: a tensor, or tuples, lists and dictionaries of them.
        mode: how far they overlap.

    """
    return _set_overlap(output_tensors, mode, "output")


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Mark a tensor as the loss that training minimises.

    Args:
        x: the loss, any shape.
        reduction: "sum", "mean" or "none", applied to ``x``.

    Returns:
        The reduced loss.

    """
    if reduction == "sum":
        loss = x.sum()
    elif reduction == "mean":
        loss = x.mean()
    else:
        assert reduction == "none", "Unsupported reduction type!"
        loss = x.clone()
    trace = tracing.current()
    if trace is not None:
        trace.note_loss(loss)
    return loss


class NameScope:
    """A context manager that prefixes the names of the operations called inside."""

    def __init__(self, name: str) -> None:
        assert isinstance(name, str), "Parameter to NameScope must be a string"
        self.name = name

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        return None
