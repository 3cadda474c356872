"""A network cut into pipeline stages at named layers, each stage on its own IPU."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Sequence

from torch import Tensor, nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError, nearest
from ipu_proxynorm.norm import Pending, ProxyNormAct, StandIn, share_moments


@dataclasses.dataclass(frozen=True)
class PipelineStage:
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


def resolve_splits(model: nn.Module, splits: Sequence[str]) -> List[str]:
    """Return the layers that ``splits`` name: as they are, by a published name, or with ``/``.

    Published names are those of ``model.split_aliases()``, such as ``block3b`` and
    ``stage3/unit4/relu``; Graphcore's PyTorch configurations write ``layer1/2`` for ``layer1.2``.

    Raises:
        UserError: a split is no layer, not in order, or named twice; names the nearest.
    """
    points = split_points(model)
    own = getattr(model, "split_aliases", None)
    aliases: Dict[str, str] = own() if callable(own) else {}
    layers = []
    for split in splits:
        spellings = (split, split.replace("/", "."))
        layer = next((s for s in spellings if s in points), None)
        layer = layer or next((aliases[s] for s in spellings if s in aliases), None)
        if layer is None:
            close = nearest(split, [*points, *aliases]) or points[:3]
            raise UserError(
                f"ipu.splits={list(splits)}: {split!r} is no layer at which a stage can begin; "
                f"nearest: {', '.join(close)} (all: {', '.join(points)})"
            )
        layers.append(layer)
    for (before, first), (after, second) in zip(zip(splits, layers), zip(splits[1:], layers[1:])):
        if points.index(second) <= points.index(first):
            ordered = sorted(dict(zip(layers, splits)).items(), key=lambda it: points.index(it[0]))
            raise UserError(
                f"ipu.splits={list(splits)}: {after!r} does not come after {before!r} in the "
                f"network; expected {[split for _, split in ordered]}"
            )
    return layers


def leaves(model: nn.Module, splits: Sequence[str]) -> List[str]:
    """Return the layers that stages are made of, in order: split points, and what lies between.

    A layer with further split points inside is one of them unless ``splits`` has one of those.
    """
    points = split_points(model)

    def descend(module: nn.Module, prefix: str) -> List[str]:
        names = []
        for child_name, child in module.named_children():
            name = f"{prefix}{child_name}"
            within = splits if name in points else points
            inside = any(point.startswith(f"{name}.") for point in within)
            names += descend(child, f"{name}.") if inside else [name]
        return names

    return descend(model, "")


def pipeline_stages(model: nn.Module, splits: Sequence[str]) -> List[PipelineStage]:
    """Return the stages that ``splits`` (:func:`resolve_splits`) cut ``model`` into, in order."""
    splits = resolve_splits(model, splits)
    groups: List[List[str]] = [[]]
    for name in leaves(model, splits):
        # A stage begins with its split, or with the first leaf of it.
        if any(
            name == split or name.startswith(f"{split}.") for split in splits[len(groups) - 1 :][:1]
        ):
            groups.append([])
        groups[-1].append(name)
    return [
        PipelineStage(
            number=number,
            ipu=number,
            layers=layers,
            parameters=sum(
                p.numel() for name in layers for p in model.get_submodule(name).parameters()
            ),
        )
        for number, layers in enumerate(groups)
    ]


def keep_outputs(model: nn.Module, layers: Sequence[str]) -> None:
    """Make the outputs of these layers recomputation checkpoints, in place.

    Raises:
        UserError: there is no such layer.
    """
    names = [name for name, _ in model.named_modules() if name]
    for layer in layers:
        if layer not in names:
            close = nearest(layer, names) or names[:3]
            raise UserError(
                f"ipu.recomputation_checkpoints={list(layers)}: {layer!r} is no layer; nearest: "
                f"{', '.join(close)}"
            )
        model.get_submodule(layer).register_forward_hook(_checkpoint)


def _kept(tensor: Tensor) -> Any:
    return poptorch.recomputationCheckpoint(tensor)


def _checkpoint(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Return the output, kept: a forward hook."""
    if isinstance(output, StandIn):
        return StandIn(_checkpoint(module, inputs, output.pending))
    if isinstance(output, Pending):  # what is per channel comes with the stage's moments
        return output._replace(value=poptorch.recomputationCheckpoint(output.value))
    return poptorch.recomputationCheckpoint(output)


def place(
    model: nn.Module, splits: Sequence[str], checkpoints: Sequence[str] = ()
) -> List[PipelineStage]:
    """Begin a PopTorch block at each of ``splits``, in place; return the stages.

    The outputs of the layers in ``checkpoints`` are kept for the backward pass.

    What runs before the first split is on IPU 0. It also computes the moments of all Proxy Norm
    layers at once: one set of operators for the network, on the IPU that must begin; the last one,
    with the classifier, is the fullest as a rule. What is per channel travels with the activations
    and is a recomputation checkpoint, so that a quadrature's nodes live for a moment only. Results
    do not depend on either.

    Raises:
        UserError: a split is no layer, or out of order, or a checkpoint is no layer.
    """
    stages = pipeline_stages(model, splits)
    keep_outputs(model, checkpoints)
    for ipu, split in enumerate(resolve_splits(model, splits), start=1):
        poptorch.BeginBlock(model.get_submodule(split), user_id=split, ipu_id=ipu)
    layers = [model.get_submodule(name) for stage in stages for name in stage.layers]
    if any(isinstance(m, ProxyNormAct) for layer in layers for m in layer.modules()):
        share_moments(*layers, keep=_kept if splits else None)
    return stages
