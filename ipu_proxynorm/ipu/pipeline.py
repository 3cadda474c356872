"""A network cut into pipeline stages at named layers, each stage on its own IPU."""

from __future__ import annotations

import dataclasses
from typing import List, Sequence

from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError, nearest
from ipu_proxynorm.norm import ProxyNormAct, share_moments


@dataclasses.dataclass(frozen=True)
class Stage:
    """One pipeline stage: the IPU of a replica it is on, and its layers, in order."""

    number: int
    ipu: int
    layers: List[str]
    parameters: int

    @property
    def span(self) -> str:
        """Return the layers in a few words, e.g. ``layer2.0 ... fc``."""
        ends = self.layers if len(self.layers) < 3 else [self.layers[0], "...", self.layers[-1]]
        return " ".join(ends)


def split_points(model: nn.Module) -> List[str]:
    """Return the layers, in order, at which a stage may begin.

    A network's own ``split_points()`` where it has one, otherwise every sub-module, in the order
    in which they were registered.
    """
    own = getattr(model, "split_points", None)
    return list(own()) if callable(own) else [name for name, _ in model.named_modules() if name]


def check_splits(model: nn.Module, splits: Sequence[str]) -> None:
    """Refuse splits that are not layers, not in order, or named twice.

    Raises:
        UserError: names the split and the nearest valid ones.
    """
    points = split_points(model)
    for split in splits:
        if split not in points:
            close = nearest(split, points) or points[:3]
            raise UserError(
                f"ipu.splits={list(splits)}: {split!r} is no layer at which a stage can begin; "
                f"nearest: {', '.join(close)} (all: {', '.join(points)})"
            )
    for before, after in zip(splits, splits[1:]):
        if points.index(after) <= points.index(before):
            raise UserError(
                f"ipu.splits={list(splits)}: {after!r} does not come after {before!r} in the "
                f"network; expected {sorted(set(splits), key=points.index)}"
            )


def leaves(model: nn.Module) -> List[str]:
    """Return the layers to show in a table: split points, and what stands outside of them."""
    points = set(split_points(model))

    def descend(module: nn.Module, prefix: str) -> List[str]:
        names = []
        for child_name, child in module.named_children():
            name = f"{prefix}{child_name}"
            inside = any(point.startswith(f"{name}.") for point in points)
            names += descend(child, f"{name}.") if inside else [name]
        return names

    return descend(model, "")


def pipeline_stages(model: nn.Module, splits: Sequence[str]) -> List[Stage]:
    """Return the stages that ``splits`` cut ``model`` into, in order; see :func:`check_splits`."""
    check_splits(model, splits)
    groups: List[List[str]] = [[]]
    for name in leaves(model):
        # A stage begins with its split, or with the first leaf of it.
        if any(
            name == split or name.startswith(f"{split}.") for split in splits[len(groups) - 1 :][:1]
        ):
            groups.append([])
        groups[-1].append(name)
    return [
        Stage(
            number=number,
            ipu=number,
            layers=layers,
            parameters=sum(
                p.numel() for name in layers for p in model.get_submodule(name).parameters()
            ),
        )
        for number, layers in enumerate(groups)
    ]


def place(model: nn.Module, splits: Sequence[str]) -> List[Stage]:
    """Begin a PopTorch block at each of ``splits``, in place; return the stages.

    What runs before the first split is on IPU 0. Each stage computes the moments of all its Proxy
    Norm layers at once, on its own IPU. Results do not depend on either.

    Raises:
        UserError: a split is no layer, or out of order.
    """
    stages = pipeline_stages(model, splits)
    for ipu, split in enumerate(splits, start=1):
        poptorch.BeginBlock(model.get_submodule(split), user_id=split, ipu_id=ipu)
    for stage in stages:
        layers = [model.get_submodule(name) for name in stage.layers]
        if any(isinstance(m, ProxyNormAct) for layer in layers for m in layer.modules()):
            share_moments(*layers)
    return stages
