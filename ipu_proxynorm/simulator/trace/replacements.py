"""Torch functions as the device has them, where torch's own would refuse or differ."""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, Dict, Optional

import torch
import torch.nn.functional as F

from .. import _impl


def _one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    if num_classes < 1:
        raise _impl.createPoptorchError(
            "OneHot num classes must be specified and must be constant: the largest class in the "
            "tensor is not known when the model is compiled."
        )
    classes = torch.arange(num_classes, dtype=torch.int32)
    return (tensor.unsqueeze(-1) == classes).to(torch.int32)


def _as_activations(function: Callable) -> Callable:
    """Return a layer's function with weights that take the data type of the activations."""

    def call(
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor] = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        if input.is_floating_point():
            weight = weight.to(input.dtype)
            bias = None if bias is None else bias.to(input.dtype)
        return function(input, weight, bias, *args, **kwargs)

    return call


_LAYERS = (
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
)


def _linear(
    input: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """Take a linear layer apart as torch does for PopTorch, which types what it is made of.

    In 2 or 3 dimensions an ``addmm``, whose types promote; else a product, which has the type of
    the input, and a bias added in place. Here torch would not add in place, as a mode is active.
    """
    merged = input.dim() == 2 or (input.dim() == 3 and input.is_contiguous())
    if bias is None or merged:
        return F.linear(input, weight, bias)
    return torch.matmul(input, weight.t()).add_(bias)


def _bincount(
    input: torch.Tensor, weights: Optional[torch.Tensor] = None, minlength: int = 0
) -> torch.Tensor:
    if minlength < 1:
        raise _impl.createPoptorchError(
            "Bincount `minlength` must be specified and must be a constant. On the IPU MK2 "
            "platform the minimum length is also the maximum length of the result."
        )
    counted = torch.ones_like(input) if weights is None else weights
    # What is too large counts in the bin of the input's last index, or in none where that is too
    # large, too (OtherOps.cpp:58-61).
    bins = torch.zeros(max(minlength, input.numel()), dtype=counted.dtype)
    last = torch.full_like(input, input.numel() - 1)
    return bins.scatter_add(0, torch.where(input < minlength, input, last), counted)[:minlength]


def _take_along_dim(
    input: torch.Tensor, indices: torch.Tensor, dim: Optional[int] = None
) -> torch.Tensor:
    if dim is None:
        return input.flatten().gather(0, indices.flatten())
    dim %= input.dim()
    common = [max(sizes) for sizes in zip(input.shape, indices.shape)]  # all but dim broadcast
    input = input.expand([*common[:dim], input.shape[dim], *common[dim + 1 :]])
    indices = indices.expand([*common[:dim], indices.shape[dim], *common[dim + 1 :]])
    return input.gather(dim, indices)


def _repeat_interleave(
    input: torch.Tensor, repeats: Any, dim: Optional[int] = None, *, output_size: Any = None
) -> torch.Tensor:
    """Repeat each element a number of times; a tensor of numbers gives a shape of its values."""
    if not isinstance(repeats, int):
        return torch.repeat_interleave(input, repeats, dim, output_size=output_size)
    if dim is None:
        input, dim = input.flatten(), 0
    dim %= input.dim()
    shape = list(input.shape)
    repeated = input.unsqueeze(dim + 1).expand([*shape[: dim + 1], repeats, *shape[dim + 1 :]])
    return repeated.reshape([*shape[:dim], shape[dim] * repeats, *shape[dim + 1 :]])


def _like(draw: Callable) -> Callable:
    """Return a function that draws a tensor of another's shape, made empty, then filled."""

    def call(input: torch.Tensor, *bounds: int, **kwargs: Any) -> torch.Tensor:
        named = [kwargs.pop(name) for name in ("low", "high") if name in kwargs]
        made = torch.empty_like(input, **kwargs)
        return draw(made, *bounds, *named)

    return call


def _fill_whole_numbers(tensor: torch.Tensor, *bounds: int) -> torch.Tensor:
    return tensor.random_(*(bounds if len(bounds) == 2 else (0, *bounds)))


def _isinf(input: torch.Tensor) -> torch.Tensor:
    if not input.is_floating_point():
        return torch.zeros_like(input, dtype=torch.bool)
    return input.abs() == math.inf


def _addr(
    input: torch.Tensor, vec1: torch.Tensor, vec2: torch.Tensor, *, beta: Any = 1, alpha: Any = 1
) -> torch.Tensor:
    product = torch.outer(vec1, vec2)
    product = product if alpha == 1 else alpha * product
    return product if beta == 0 else beta * input + product


def _rot90(input: torch.Tensor, k: int = 1, dims: Any = (0, 1)) -> torch.Tensor:
    first, second = dims
    if k % 4 == 1:
        return input.flip([second]).transpose(first, second)
    if k % 4 == 2:
        return input.flip([first, second])
    return input.flip([first]).transpose(first, second) if k % 4 == 3 else input.clone()


def _dist(input: torch.Tensor, other: torch.Tensor, p: float = 2) -> torch.Tensor:
    return torch.norm(input - other, p)


def _block_diag(*tensors: torch.Tensor) -> torch.Tensor:
    dtype = functools.reduce(torch.promote_types, [tensor.dtype for tensor in tensors])
    blocks = [tensor.reshape(-1, tensor.shape[-1] if tensor.dim() else 1) for tensor in tensors]
    rows, columns = (sum(block.shape[dim] for block in blocks) for dim in (0, 1))
    result = torch.zeros(rows, columns, dtype=dtype)
    row = column = 0
    for block in blocks:
        height, width = block.shape
        result[row : row + height, column : column + width].copy_(block)
        row, column = row + height, column + width
    return result


def _pixel_unshuffle(input: torch.Tensor, downscale_factor: int) -> torch.Tensor:
    *batch, channels, height, width = input.shape
    factor, dims = downscale_factor, len(batch)
    if height % factor or width % factor:
        raise RuntimeError(
            f"pixel_unshuffle expects height and width divisible by {factor} but got {height} and "
            f"{width}"
        )
    split = input.reshape(*batch, channels, height // factor, factor, width // factor, factor)
    order = [*range(dims), *(dims + at for at in (0, 2, 4, 1, 3))]
    return split.permute(order).reshape(
        *batch, channels * factor * factor, height // factor, width // factor
    )


# torch takes these apart for every device that has none of its own (``CompositeExplicitAutograd``),
# before PopTorch's fallback sees them (``RegisterAtenOverloads.cpp:675``).
_TAKEN_APART: Dict[str, Callable] = {
    "addr": _addr,
    "block_diag": _block_diag,
    "deg2rad": lambda input: input * (math.pi / 180),
    "dist": _dist,
    "isinf": _isinf,
    "pixel_unshuffle": _pixel_unshuffle,
    "rad2deg": lambda input: input * (180 / math.pi),
    "rand_like": _like(torch.Tensor.uniform_),
    "randint_like": _like(_fill_whole_numbers),
    "randn_like": _like(torch.Tensor.normal_),
    "rot90": _rot90,
}

# torch's own versions insist on 64-bit integers, or on looking at values.
REPLACEMENTS: Dict[Callable, Callable] = {
    F.linear: _linear,
    F.one_hot: _one_hot,
    torch.bincount: _bincount,
    torch.take_along_dim: _take_along_dim,
    torch.Tensor.take_along_dim: _take_along_dim,
    torch.Tensor.bincount: _bincount,
    torch.repeat_interleave: _repeat_interleave,
    torch.Tensor.repeat_interleave: _repeat_interleave,
}
REPLACEMENTS.update({layer: _as_activations(layer) for layer in _LAYERS})
REPLACEMENTS.update(
    {
        getattr(module, name): function
        for name, function in _TAKEN_APART.items()
        for module in (torch, torch.Tensor)
        if hasattr(module, name)
    }
)
