"""Reads a layout off ``poptorch.Options``."""

from __future__ import annotations

from typing import Any, Dict

import torch
from torch import nn

from ipu_proxynorm.memory.layout import Layout

# PopART's RecomputationType: None, Standard, NormOnly, Pipeline, RecomputeAll.
_RECOMPUTATIONS = {0: "none", 1: "checkpoints", 2: "none", 3: "stage", 4: "checkpoints"}
_PIPELINED = ("PipelinedExecution", "NoneType")


def read_options(options: Any) -> Layout:
    """Return the layout that ``poptorch.Options`` describe; None: the defaults.

    Recomputation is PopTorch's default where the options do not set PopART's
    ``autoRecomputation``: per stage when pipelined, else none. The checkpoints that PopART's
    ``Standard`` finds for itself are not imitated: those that the model marks count.

    Read from private members that PopTorch 3.4 and the simulator share, for want of public ones;
    what an Options lacks has PopTorch's default.
    """
    if options is None:
        return Layout()
    training = getattr(options, "Training", None)
    values = getattr(options, "_values", {})
    strategy = type(getattr(options, "_execution_strategy", None)).__name__
    proportions = values.get("available_memory_proportion") or {}
    ipus = max(proportions, default=-1) + 1
    locations = getattr(getattr(options, "TensorLocations", None), "_values", {})
    popart = getattr(getattr(options, "_Popart", None), "options", {})
    default = 3 if strategy in _PIPELINED else 0
    return Layout(
        chip={1: "mk1"}.get(values.get("ipu_version", 2), "mk2"),
        replicas=values.get("replication_factor", 1),
        gradient_accumulation=getattr(training, "gradient_accumulation", 1),
        schedule="pipelined" if strategy in _PIPELINED else "sequential",
        recomputation=_RECOMPUTATIONS.get(popart.get("autoRecomputation", default), "stage"),
        optimizer_location=_location(locations.get("location_optimizer", {})),
        available_memory_proportion=tuple(proportions.get(i, 0.6) for i in range(ipus)) or (0.6,),
        half_partials=_half_partials(popart),
        io_tiles=locations.get("numIOTiles", 0),
    )


def _location(settings: Dict[str, Any]) -> str:
    if settings.get("useReplicatedTensorSharding"):
        return "sharded"
    return "on-chip" if settings.get("onChip", 1) else "off-chip"


def _half_partials(popart: Dict[str, Any]) -> bool:
    return (popart.get("convolutionOptions") or {}).get("partialsType") == "half"


def precision_of(model: nn.Module) -> str:
    """Return the precision that a model's parameters have: all float16, or not."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return "16.16" if types == {torch.float16} else "32.32"
