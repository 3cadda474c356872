"""``ipu-proxynorm plan CONFIG --ipus N``: the layout of highest predicted throughput that fits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Sequence

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ipu_proxynorm.cli.arguments import add_config, add_format, read_config
from ipu_proxynorm.cli.output import write_text
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory.planner import SYSTEMS, system_ipus
from ipu_proxynorm.memory.table import speed
from ipu_proxynorm.prediction.planning import (
    RunPlan,
    global_batch,
    nothing_fits,
    plan_run,
    planned_yaml,
    reasons,
)
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.plan_page import certainty, heading, plan_findings
from ipu_proxynorm.report.plan_tables import plan_rows, stage_rows


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
    parser.add_argument("--out", metavar="DIR", help="folder of a report; default: none is written")
    add_format(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Plan, print the choice with its reasons, and write the configuration."""
    ipus = arguments.ipus if arguments.system is None else system_ipus(arguments.system)
    formats = findings.formats_of(arguments.format)
    if arguments.out is not None:
        findings.check_drawing(formats)
        findings.check_writable(Path(arguments.out))
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
    if arguments.out is not None:
        for path in findings.write(Path(arguments.out), formats, plan_findings(planned)):
            console.print(f"wrote {path}")


def show(planned: RunPlan, console: Console) -> None:
    """Print the plans, the stages of the best one, and why it is the best."""
    best = planned.best
    console.print(heading(planned))
    for cells in (plan_rows(planned), stage_rows(best)):
        console.print(table(cells))
    console.print(f"chosen: {speed(best.prediction.throughput)}; no IPU has measured it")
    for reason in reasons(planned):
        console.print(f"- {reason}")
    console.print(certainty())


def table(cells: Sequence[Sequence[str]]) -> Table:
    """Return cells, whose first row is the head, as a table of the terminal."""
    head, *body = cells
    result = Table(*head)
    for row in body:
        result.add_row(*row)
    return result
