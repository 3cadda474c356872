"""Reads a layout from ``poptorch.Options``."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator

import torch
from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory.layout import Layout
from ipu_proxynorm.placement import OFF_CHIP, ON_CHIP, SHARDED

# PopART's RecomputationType: None, Standard, NormOnly, Pipeline, RecomputeAll.
_RECOMPUTATIONS = {0: "none", 1: "standard", 2: "norms", 3: "stage", 4: "checkpoints"}
# What ``backendOptions`` says of PipelinedExecution (options.py:920).
_PIPELINED = 0


@contextlib.contextmanager
def as_in_poptorch(what: str) -> Iterator[None]:
    """Turn the lack of what PopTorch 3.4 has into one sentence.

    Raises:
        UserError: an attribute is missing inside.
    """
    try:
        yield
    except (AttributeError, KeyError) as error:
        raise UserError(
            f"this PopTorch ({poptorch.__version__}) keeps {what} elsewhere than 3.4 does "
            f"({error}); expected PopTorch 3.4 or its simulator: give a memory.Layout instead of "
            f"poptorch.Options"
        ) from error


def read_options(options: Any) -> Layout:
    """Return the layout that ``poptorch.Options`` describe; None: the defaults.

    Recomputation is PopTorch's default where the options do not set PopART's
    ``autoRecomputation``: per stage when pipelined, else none. In a pipeline any other kind than
    none counts as stages: PopART looks at none of them there (``pipeline.cpp:1505``).

    Read as PopTorch 3.4's ``python/options.py`` has it.

    Raises:
        UserError: the options lack what theirs have.
    """
    if options is None:
        return Layout()
    with as_in_poptorch("its options"):
        # Not public: the strategy (options.py:1169); _Popart is documented (options.py:387).
        pipelined = options._execution_strategy.backendOptions()["execution_mode"] == _PIPELINED
        popart = options._Popart.options
        proportions = options.available_memory_proportion  # by IPU (options.py:1456)
        version = options.ipu_version if options.exists("ipu_version") else 2  # options.py:1666
        # Both exist once they are set (options.py:654 and 624).
        locations = options.TensorLocations.toDict()
        replicas = options.replication_factor  # options.py:1179
        accumulation = options.Training.gradient_accumulation  # options.py:210
    kind = _RECOMPUTATIONS.get(popart.get("autoRecomputation", 3 if pipelined else 0), "stage")
    ipus = max(proportions, default=-1) + 1
    return Layout(
        chip={1: "mk1", 21: "c600"}.get(version, "mk2"),  # 21: a Mk2 with float8
        replicas=replicas,
        gradient_accumulation=accumulation,
        schedule="pipelined" if pipelined else "sequential",
        recomputation=kind,
        keeps_last_segment=kind == "checkpoints" and not popart.get("explicitRecomputation", False),
        optimizer_location=_location(locations.get("location_optimizer", {})),
        available_memory_proportion=tuple(proportions.get(i, 0.6) for i in range(ipus)) or (0.6,),
        half_partials=_half_partials(popart),
        io_tiles=locations.get("numIOTiles", 0),
        stable_norm=bool(popart.get("enableStableNorm", False)),
        exchange=_exchange(popart),
    )


def grouping_of(options: Any) -> str:
    """Return how Group Norm groups channels where ``poptorch.Options`` hold; None: contiguous.

    Raises:
        UserError: the options lack what theirs have.
    """
    if options is None:
        return "contiguous"
    with as_in_poptorch("its options"):
        strided = options._Popart.options.get("groupNormStridedChannelGrouping", False)
    return "strided" if strided else "contiguous"


def _location(settings: Dict[str, Any]) -> str:
    if settings.get("useReplicatedTensorSharding"):
        return SHARDED
    return ON_CHIP if settings.get("onChip", 1) else OFF_CHIP


def _exchange(popart: Dict[str, Any]) -> str:
    """Return the exchange target that the options ask Poplar for."""
    engine = popart.get("engineOptions") or {}
    return str(engine.get("opt.internalExchangeOptimisationTarget", "cycles"))


def _half_partials(popart: Dict[str, Any]) -> bool:
    return (popart.get("convolutionOptions") or {}).get("partialsType") == "half"


def precision_of_weights(model: nn.Module) -> str:
    """Return the precision that a model's parameters have: all float16, or not."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return "16.16" if types == {torch.float16} else "32.32"
