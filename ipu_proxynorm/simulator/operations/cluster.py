"""Point sets: sampling the farthest points, and finding the nearest."""

from __future__ import annotations

import math
from typing import Any, List, Optional, Union

import torch

from .. import _impl


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise _impl.createPoptorchError(message)


def fps(
    src: torch.Tensor, ptr: List[int], ratio: float = 0.5, random_start: bool = False
) -> torch.Tensor:
    """Sample points of each set, each time the one farthest from those sampled so far.

    Args:
        src: (points, features).
        ptr: where each set starts in ``src``, and where the last one ends.
        ratio: how much of each set is sampled.
        random_start: start with any point instead of the first.

    Returns:
        Indices of the sampled points.

    Raises:
        poptorch.Error: an argument of another type.

    Source: Qi et al., PointNet++, arXiv 1706.02413.

    """
    _require(
        isinstance(src, torch.Tensor),
        f"`fps` must take a torch.tensor input. {type(src)} is not supported.",
    )
    _require(isinstance(ptr, list), "`ptr` must be a list of integers.")
    _require(len(ptr) >= 2, "`ptr` must containt at least 2 elements.")
    _require(
        isinstance(ratio, float),
        f"`ratio` must be of float type. {type(ratio)} is not supported.",
    )
    _require(
        isinstance(random_start, bool),
        f"`random_start` must be of bool type. {type(random_start)} is not supported.",
    )
    sampled = []
    for start, end in zip(ptr, ptr[1:]):
        points = src[start:end].reshape(end - start, -1)
        first = torch.randint(0, end - start, (1,)) if random_start else torch.zeros(1).int()
        chosen = [first]
        nearest_squared = torch.full_like(points[:, 0], math.inf)
        for _ in range(math.ceil((end - start) * ratio) - 1):
            offsets = points - points.index_select(0, chosen[-1])
            nearest_squared = torch.minimum(nearest_squared, (offsets * offsets).sum(1))
            chosen.append(nearest_squared.argmax(0, keepdim=True))
        sampled.append(torch.cat([index.to(torch.int32) for index in chosen]) + start)
    return torch.cat(sampled)


def nearest(
    x: torch.Tensor,
    y: torch.Tensor,
    batch_x: Optional[Union[List[int], torch.Tensor]] = None,
    batch_y: Optional[Union[List[int], torch.Tensor]] = None,
) -> torch.Tensor:
    """Return for each point of ``x`` the index of the nearest point of ``y`` in the same sample.

    Args:
        x: (points of x, features).
        y: (points of y, features).
        batch_x: (points of x,) the sample of each point; all in one if None.
        batch_y: (points of y,) likewise.

    Raises:
        poptorch.Error: an argument of another type.

    """
    for name, value in (("x", x), ("y", y)):
        _require(
            isinstance(value, torch.Tensor),
            f"`nearest` must take a torch.tensor `{name}` input. {type(value)} is not supported.",
        )
    of_x, of_y = ([] if b is None else b for b in (batch_x, batch_y))
    allowed = (list, torch.Tensor)
    _require(
        isinstance(of_x, allowed) and isinstance(of_y, allowed),
        "`batch_x` and `batch_y` must be torch.Tensors or lists while `batch_x` is of type "
        f"{type(of_x)} and `batch_y` is of type {type(of_y)}.",
    )
    points, others = (t.reshape(t.shape[0], -1) for t in (x, y))
    offsets = points.unsqueeze(1) - others.unsqueeze(0)  # (points of x, points of y, features)
    squared = (offsets * offsets).sum(2)
    if len(of_x) and len(of_y):
        different = _column(of_x).unsqueeze(1) != _column(of_y).unsqueeze(0)
        squared = squared.masked_fill(different, math.inf)
    return squared.argmin(1)


def _column(batch: Any) -> torch.Tensor:
    return batch if isinstance(batch, torch.Tensor) else torch.tensor(batch)
