"""A run's memory by micro-batch, and the largest that fits."""

from __future__ import annotations

import dataclasses
from typing import List, Mapping, Optional, Sequence, Tuple

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.memory import FITS, IpuBudget, ensemble, ipu_budgets
from ipu_proxynorm.memory.predict import verdict_name
from ipu_proxynorm.prediction.footprint import Footprint

#: A micro-batch, and the budget of the fullest IPU at it.
Sweep = List[Tuple[int, IpuBudget]]


def with_norm(config: RunConfig, norm: str) -> RunConfig:
    """Return the configuration with another norm."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, norm=norm))


def fullest(budgets: Sequence[IpuBudget]) -> IpuBudget:
    """Return the budget of the fullest IPU."""
    return max(budgets, key=lambda budget: budget.utilisation)


def sweep(found: Footprint, steps: Sequence[int]) -> Sweep:
    """Return the fullest IPU at each micro-batch; everything else stays."""
    central = ensemble()[0]
    return [
        (step, fullest(ipu_budgets(found.capture.with_micro_batch(step), found.layout, central)))
        for step in steps
    ]


def largest(points: Sweep) -> Optional[int]:
    """Return the largest micro-batch up to which all fit; None: the first does not."""
    fitting = None
    for micro_batch, budget in points:
        if verdict_name(budget.utilisation) != FITS:
            break
        fitting = micro_batch
    return fitting


def largest_that_fit(sweeps: Mapping[str, Sweep]) -> List[str]:
    """Return a sentence for each norm."""
    sentences = []
    for norm, points in sweeps.items():
        best, last = largest(points), points[-1][0]
        if best is None:
            text = f"micro-batch {points[0][0]} does not surely fit"
        else:
            text = f"the largest micro-batch that fits is {best}"
            text += " (the last one tried)" if best == last else ""
        sentences.append(f"{norm}: {text}")
    return sentences
