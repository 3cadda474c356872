"""Slices whose start is a tensor, read at run time."""

from __future__ import annotations

import torch

from .. import _impl
from ..trace.recorder import active


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _impl.createPoptorchError(message)


def _check_size(size: int) -> None:
    _require(size != 0, "The start and end of a slice must be different.")
    _require(
        size > 0,
        "Taking a slice of a tensor with the end less than the start is not supported.",
    )


def _indices(start: torch.Tensor, size: int, step: int) -> torch.Tensor:
    return start.reshape(()) + torch.arange(0, size, step, dtype=start.dtype)


def dynamic_slice(
    tensor: torch.Tensor, dim: int, start: torch.Tensor, size: int, step: int
) -> torch.Tensor:
    """Return ``tensor[start : start + size : step]`` along a dimension.

    Args:
        tensor: what to slice.
        dim: the dimension.
        start: one integer, read at run time.
        size: how many elements the slice spans; must divide the dimension.
        step: the step within the slice.

    Raises:
        poptorch.Error: an argument of another type or an impossible size.

    """
    _require(
        isinstance(tensor, torch.Tensor),
        f"dynamic_slice must take a torch.tensor input. {type(tensor)} is not supported.",
    )
    _require(isinstance(dim, int), "Dimension must be an integer.")
    _require(
        isinstance(start, torch.Tensor),
        "Slice start argument to dynamic_slice must be a torch.tensor. "
        f"{type(start)} is not supported.",
    )
    _require(isinstance(size, int), "Size must be an integer.")
    _require(isinstance(step, int), "Step must be an integer.")
    if active() is None:
        first = int(start)
        index = (slice(None),) * (dim % tensor.dim()) + (slice(first, first + size, step),)
        return tensor[index]
    _check_size(size)
    _require(
        tensor.shape[dim] % size == 0,
        f"The size of the slice ({size}) must be a factor of the slicing dimension "
        f"({tensor.shape[dim]}).",
    )
    return torch.index_select(tensor, dim, _indices(start, size, step))


def dynamic_update(
    input: torch.Tensor, src: torch.Tensor, dim: int, start: torch.Tensor, size: int
) -> torch.Tensor:
    """Return ``input`` with ``src`` in the place of ``input[start : start + size]``.

    Args:
        input: the tensor to update; stays as it is.
        src: what to put in.
        dim: the dimension.
        start: one integer, read at run time.
        size: the size of ``src`` along the dimension.

    Raises:
        poptorch.Error: an argument of another type, or tensors that do not fit.

    """
    _require(
        isinstance(input, torch.Tensor),
        f"dynamic_update must take a torch.tensor input. {type(input)} is not supported.",
    )
    _require(isinstance(dim, int), "Dimension must be an integer.")
    _require(
        isinstance(start, torch.Tensor),
        "Slice start argument to dynamic_update must be a torch.tensor. "
        f"{type(start)} is not supported.",
    )
    _require(
        isinstance(src, torch.Tensor),
        f"Src argument to dynamic_update must be a torch.tensor. {type(src)} is not supported.",
    )
    _require(isinstance(size, int), "Size must be an integer.")
    _require(
        input.dim() == src.dim(),
        f"input and src tensors must have same dimensionality. ({input.dim()}) vs ({src.dim()})",
    )
    _require(
        input.dtype == src.dtype,
        f"input and src tensor must have same dtype. ({input.dtype} vs {src.dtype})",
    )
    recorder = active()
    if recorder is None:
        return torch.slice_scatter(input, src, dim, int(start), int(start) + size, 1)
    _check_size(size)
    with recorder.trusted():
        return torch.index_copy(input, dim, _indices(start, size, 1), src)
