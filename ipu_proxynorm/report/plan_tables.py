"""Planned layouts as tables, in words for readers and as plain values for programs."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Tuple

from ipu_proxynorm.memory import MIB
from ipu_proxynorm.memory.planner import Plan
from ipu_proxynorm.prediction.planning import (
    RunPlan,
    layer_names,
    recomputation,
    stage_checkpoints,
)

#: Of the table of plans as numbers.
COLUMNS = (
    "layout",
    "stages",
    "replicas",
    "micro_batch",
    "gradient_accumulation",
    "splits",
    "checkpoints",
    "optimizer_state",
    "recomputation",
    "available_memory_proportion",
    "images_per_second",
    "bubble",
    "balance",
    "fullest_ipu_bytes",
    "utilisation",
    "verdict",
)


def named_plans(planned: RunPlan) -> List[Tuple[str, Plan]]:
    """Return the plans by what they are called, the configuration's own last."""
    fitting = planned.plans.fitting
    names = ["chosen", *(f"{number}." for number in range(2, len(fitting) + 1)), "as given"]
    return list(zip(names, [*fitting, planned.given]))


def plan_rows(planned: RunPlan) -> List[List[str]]:
    """Return cells of the plans side by side, a column a plan; the first row is the head."""
    names, plans = zip(*named_plans(planned))
    verdicts = [plan.prediction.verdict for plan in plans]
    return [
        ["", *names],
        ["stages x replicas", *(f"{p.batch.stages} x {p.batch.replicas}" for p in plans)],
        ["micro-batch", *(str(p.batch.micro_batch) for p in plans)],
        ["gradient accumulation", *(str(p.batch.gradient_accumulation) for p in plans)],
        ["optimiser state", *(p.optimizer_location for p in plans)],
        ["recomputation", *map(recomputation, plans)],
        ["memory proportion", *(f"{p.prediction.layout.proportion(0):g}" for p in plans)],
        ["images/s", *(f"{p.images_per_second:,.0f}" for p in plans)],
        ["pipeline bubble", *(f"{p.batch.bubble:.0%}" for p in plans)],
        ["balance of stages", *(f"{p.balance:.0%}" for p in plans)],
        ["fullest IPU", *(f"{verdict.utilisation:.0%}" for verdict in verdicts)],
        ["verdict", *(verdict.name for verdict in verdicts)],
    ]


def stage_rows(plan: Plan) -> List[List[str]]:
    """Return cells of a plan's stages; the first row is the head."""
    rows = [["stage", "begins at", "checkpoints", "cycles", "memory"]]
    starts = ["(images)", *layer_names(plan.splits)]
    kept = stage_checkpoints(plan)
    for number, (start, cycles) in enumerate(zip(starts, plan.stage_cycles)):
        budget = plan.prediction.ipus[number]
        memory = f"{budget.used / MIB:,.0f} MiB ({budget.utilisation:.0%})"
        names = " ".join(kept[number]) or "none"
        rows.append([str(number), start, names, f"{cycles:,.0f}", memory])
    return rows


def plan_values(planned: RunPlan) -> List[List[Any]]:
    """Return a row of plain values for each plan, by `COLUMNS`."""
    return [
        [
            name,
            plan.batch.stages,
            plan.batch.replicas,
            plan.batch.micro_batch,
            plan.batch.gradient_accumulation,
            " ".join(layer_names(plan.splits)),
            " ".join(layer_names(plan.checkpoints)),
            plan.optimizer_location,
            recomputation(plan),
            plan.prediction.layout.proportion(0),
            plan.images_per_second,
            plan.batch.bubble,
            plan.balance,
            max(budget.used for budget in plan.prediction.ipus),
            plan.prediction.verdict.utilisation,
            plan.prediction.verdict.name,
        ]
        for name, plan in named_plans(planned)
    ]


def values_of(planned: RunPlan) -> Dict[str, Any]:
    """Return everything as plain values, bytes."""
    return {
        "ipus": planned.ipus,
        "chip": planned.chip,
        "considered": planned.plans.considered,
        "layouts": [
            {
                **dict(zip(COLUMNS, row)),
                "stage_cycles": list(plan.stage_cycles),
                "throughput": dataclasses.asdict(plan.prediction.throughput),
                "memory": [dataclasses.asdict(budget) for budget in plan.prediction.ipus],
            }
            for row, (_, plan) in zip(plan_values(planned), named_plans(planned))
        ],
    }
