"""Which channels form a group: contiguous, as PyTorch groups them, or strided, faster on an IPU."""

from __future__ import annotations

import difflib

from torch import Tensor

GROUPINGS = ("contiguous", "strided")


def check_grouping(grouping: str) -> str:
    """Return the grouping.

    Raises:
        ValueError: it is none.

    """
    if grouping not in GROUPINGS:
        near = difflib.get_close_matches(str(grouping), GROUPINGS, n=1)
        raise ValueError(
            f"unknown channel grouping '{grouping}': expected one of {', '.join(GROUPINGS)}"
            + (f"; did you mean '{near[0]}'?" if near else "")
        )
    return grouping


def regroup_channels(
    tensor: Tensor, groups: int, source: str, target: str, *, dim: int = 0
) -> Tensor:
    """Permute channels so that ``target`` groups hold what ``source`` groups held.

    Group Norm with ``target`` grouping of the permuted channels is the permutation of Group Norm
    with ``source`` grouping. To convert a network, permute the output channels of the convolution
    before the norm, the norm's parameters, and the input channels of whatever reads the result.

    Args:
        tensor: any shape, with C channels along ``dim``.
        groups: number of groups, a divisor of C.
        source: ``contiguous`` (channel c in group c // (C / groups)) or ``strided`` (c mod groups).
        target: likewise.
        dim: where the channels are.

    Returns:
        Shape of the tensor.

    Raises:
        ValueError: an unknown grouping, a dimension that the tensor does not have, or groups that
            do not divide the channels.

    """
    check_grouping(source)
    check_grouping(target)
    shape = tensor.shape
    if not -len(shape) <= dim < len(shape):
        raise ValueError(f"dim={dim}: expected a dimension of a tensor of shape {tuple(shape)}")
    dim = dim % len(shape)
    if groups < 1 or shape[dim] % groups:
        raise ValueError(f"{groups} groups do not divide {shape[dim]} channels")
    if source == target:
        return tensor
    size = shape[dim] // groups
    # A strided layout counts groups fastest, a contiguous one the members of a group.
    split = (size, groups) if source == "strided" else (groups, size)
    grid = tensor.reshape(*shape[:dim], *split, *shape[dim + 1 :])
    return grid.transpose(dim, dim + 1).reshape(shape)
