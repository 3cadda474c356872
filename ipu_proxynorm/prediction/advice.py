"""A run's memory with advice that its configuration can follow, in the words of its keys."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.config.check import check
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory import (
    FITS,
    Advice,
    Capture,
    Layout,
    Prediction,
    advise,
    predict_capture,
)
from ipu_proxynorm.prediction.planning import layer_names
from ipu_proxynorm.recomputation import ALL, PIPELINE

#: More than there are kinds of advice.
_ALL = 16


def predict_run(
    config: RunConfig,
    captured: Capture,
    layout: Layout,
    points: Sequence[str],
    advice: Optional[bool] = True,
) -> Prediction:
    """Return the prediction for a run's program.

    Args:
        config: the configuration of the run.
        captured: its program.
        layout: its own.
        points: layers at which a stage may begin.
        advice: look for it; None: only where the program does not surely fit.
    """
    prediction = predict_capture(captured, layout)
    wanted = prediction.verdict.name != FITS if advice is None else advice
    if not wanted:
        return prediction
    return dataclasses.replace(prediction, advice=run_advice(config, captured, layout, points))


def run_advice(
    config: RunConfig, captured: Capture, layout: Layout, points: Sequence[str], count: int = 3
) -> Tuple[Advice, ...]:
    """Return the changes that save most of those that the configuration can have, best first."""
    found: List[Advice] = []
    for advice in advise(captured, layout, points, count=_ALL):
        changes = changed_keys(config, layout, advice)
        if changes is not None and len(found) < count:
            words = " ".join(f"ipu.{key}={_shown(value)}" for key, value in changes.items())
            found.append(dataclasses.replace(advice, text=f"{advice.text} ({words})"))
    return tuple(found)


def changed_keys(config: RunConfig, layout: Layout, advice: Advice) -> Optional[Dict[str, Any]]:
    """Return the keys of ``ipu`` that follow a piece of advice; None: none do."""
    new = advice.layout
    changes: Dict[str, Any] = {}
    if new.recomputation != layout.recomputation:
        changes["recomputation"] = {"stage": PIPELINE, "checkpoints": ALL}[new.recomputation]
    if advice.micro_batch != config.ipu.micro_batch_size:
        changes["micro_batch_size"] = advice.micro_batch
    if advice.splits is not None:
        changes["splits"] = list(layer_names(advice.splits))
    if new.gradient_accumulation != layout.gradient_accumulation:
        changes["gradient_accumulation"] = new.gradient_accumulation
    if new.checkpoints != layout.checkpoints:
        kept = config.ipu.recomputation_checkpoints
        changes["recomputation_checkpoints"] = [*kept, *layer_names(new.checkpoints)]
    if new.optimizer_location != layout.optimizer_location:
        changes["optimizer_state"] = new.optimizer_location
    if _shares(new) != _shares(layout):
        changes["available_memory_proportion"] = _shares(new)
    if new.precision != layout.precision:
        changes["precision"] = new.precision
    if new.half_partials != layout.half_partials:
        changes["half_partials"] = new.half_partials
    changed = dataclasses.replace(config, ipu=dataclasses.replace(config.ipu, **changes))
    try:
        check(changed)
    except UserError:
        return None
    return changes


def _shares(layout: Layout) -> List[float]:
    """Return the memory proportions, once where all IPUs have the same."""
    given = layout.available_memory_proportion
    return list(given[:1] if len(set(given)) == 1 else given)


def _shown(value: Any) -> str:
    """Return a value as an override has it."""
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
