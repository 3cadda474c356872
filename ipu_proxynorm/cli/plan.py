"""``ipu-proxynorm plan CONFIG --ipus N``: the layout of highest predicted throughput that fits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ipu_proxynorm.cli.arguments import add_config, read_config
from ipu_proxynorm.cli.output import write_text
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory import AT_TWICE_THE_LARGEST, FALSE_FITS, MIB, SAFE
from ipu_proxynorm.memory.planner import SYSTEMS, Plan, system_ipus
from ipu_proxynorm.memory.table import speed
from ipu_proxynorm.prediction.planning import (
    RunPlan,
    global_batch,
    layer_names,
    nothing_fits,
    plan_run,
    planned_yaml,
    reasons,
    recomputation,
    stage_checkpoints,
)


def add_parser(subparsers: Any) -> None:
    """Add ``plan`` to the sub-commands."""
    parser = subparsers.add_parser(
        "plan",
        help="lay a network out over IPUs so that it fits and is fast",
        description="Search splits, micro-batch, replicas, accumulation, recomputation, memory "
        "proportion and the place of the optimiser state for the highest predicted throughput that "
        "is predicted to fit (at most 85 % of an IPU's memory). The global batch is kept.",
    )
    add_config(parser, "ipu.chip=bow")
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--ipus", type=int, metavar="N", help="IPUs that there are")
    size.add_argument("--system", metavar="NAME", help=f"one of {', '.join(SYSTEMS)}")
    parser.add_argument(
        "--global-batch",
        type=int,
        metavar="N",
        help="images per weight update; default: CONFIG's",
    )
    parser.add_argument("--output", metavar="FILE", help="write the planned configuration there")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Plan, print the choice with its reasons, and write the configuration."""
    ipus = arguments.ipus if arguments.system is None else system_ipus(arguments.system)
    config = read_config(arguments, trains=False)
    batch = arguments.global_batch
    images = global_batch(config) if batch is None else batch
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("layouts", total=None)

        def progress(done: int, of: int) -> None:
            bar.update(task, completed=done, total=of)

        planned = plan_run(config, ipus, images, progress=progress)
    if not planned.plans.fitting:
        raise UserError(nothing_fits(planned))
    show(planned, console)
    if arguments.output is not None:
        write_text(Path(arguments.output), planned_yaml(config, planned.best))
        console.print(f"configuration: {arguments.output} (train {arguments.output})")


def show(planned: RunPlan, console: Console) -> None:
    """Print the plans, the stages of the best one, and why it is the best."""
    best = planned.best
    console.print(
        f"{planned.config.name}: {planned.config.model.name} ({planned.config.model.norm}), "
        f"{best.batch.global_batch} images an update on {planned.ipus} IPUs ({planned.chip}): "
        f"{planned.plans.considered} layouts considered"
    )
    console.print(plans_table(planned))
    console.print(stages_table(best))
    console.print(f"chosen: {speed(best.prediction.throughput)}; no IPU has measured it")
    for reason in reasons(planned):
        console.print(f"- {reason}")
    console.print(
        f"fits: at most {SAFE:.0%} of an IPU by prediction; of {AT_TWICE_THE_LARGEST} programs at "
        f"twice the largest micro-batch that was published, {FALSE_FITS} were said to fit"
    )


def plans_table(planned: RunPlan) -> Table:
    """Return the plans side by side, the configuration's own last."""
    fitting = planned.plans.fitting
    names = ["chosen", *(f"{number}." for number in range(2, len(fitting) + 1)), "as given"]
    table = Table("", *names)
    plans = [*fitting, planned.given]
    verdicts = [plan.prediction.verdict for plan in plans]
    for title, values in (
        ("stages x replicas", [f"{p.batch.stages} x {p.batch.replicas}" for p in plans]),
        ("micro-batch", [str(p.batch.micro_batch) for p in plans]),
        ("gradient accumulation", [str(p.batch.gradient_accumulation) for p in plans]),
        ("optimiser state", [p.optimizer_location for p in plans]),
        ("recomputation", [recomputation(p) for p in plans]),
        ("memory proportion", [f"{p.prediction.layout.proportion(0):g}" for p in plans]),
        ("images/s", [f"{p.images_per_second:,.0f}" for p in plans]),
        ("pipeline bubble", [f"{p.batch.bubble:.0%}" for p in plans]),
        ("balance of stages", [f"{p.balance:.0%}" for p in plans]),
        ("fullest IPU", [f"{verdict.utilisation:.0%}" for verdict in verdicts]),
        ("verdict", [verdict.name for verdict in verdicts]),
    ):
        table.add_row(title, *values)
    return table


def stages_table(plan: Plan) -> Table:
    """Return the stages of a plan."""
    table = Table("stage", "begins at", "checkpoints", "cycles", "memory")
    starts = ["(images)", *layer_names(plan.splits)]
    kept = stage_checkpoints(plan)
    for number, (start, cycles) in enumerate(zip(starts, plan.stage_cycles)):
        budget = plan.prediction.ipus[number]
        table.add_row(
            str(number),
            start,
            " ".join(kept[number]) or "none",
            f"{cycles:,.0f}",
            f"{budget.used / MIB:,.0f} MiB ({budget.utilisation:.0%})",
        )
    return table
