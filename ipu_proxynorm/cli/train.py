"""``run_ipu.py train CONFIG [key=value ...]``: train a network and keep what came out."""

from __future__ import annotations

import argparse
from typing import Any, List, Tuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ipu_proxynorm.backend import SIMULATED
from ipu_proxynorm.config import documentation, load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.training import EpochResult, Run, RunDirectory, StepResult, build, fit


def add_parser(subparsers: Any) -> None:
    """Add ``train`` to the sub-commands."""
    parser = subparsers.add_parser(
        "train",
        help="train a network as a YAML file says",
        description="Train as CONFIG says; the run goes to <runs>/<name>/.",
    )
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="e.g. configs/quickstart.yaml")
    parser.add_argument(
        "overrides", metavar="key=value", nargs="*", help="overrides, e.g. training.epochs=1"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a run of the same name, if there is one"
    )
    parser.add_argument("--keys", action="store_true", help="list every key of CONFIG and stop")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Train, printing first what the run is made of, then its progress."""
    if arguments.keys:
        console.print(keys_table())
        return
    if arguments.config is None:
        raise UserError("CONFIG is missing: expected a YAML file, e.g. configs/quickstart.yaml")
    config = load(arguments.config, arguments.overrides)
    run = build(config)
    directory = RunDirectory.create(config, arguments.overwrite)
    try:
        describe(run, console)
        last, best = show_progress(run, directory, console)
    finally:
        directory.close()
    console.print(
        f"last epoch: validation accuracy {last.validation.accuracy:.2%} "
        f"({last.validation.right} of {last.validation.images}); "
        f"best: {best.validation.accuracy:.2%} after epoch {best.epoch}; run in {directory.path}"
    )


def describe(run: Run, console: Console) -> None:
    """Print the arithmetic of the batches, the parameter groups and the pipeline stages."""
    batch, (train, validation) = run.arithmetic, run.data.sizes()
    console.print(
        f"{run.config.name}: {run.config.model.name} ({run.config.model.norm}) on "
        f"{run.data.name}, {'simulated' if SIMULATED else 'with the Poplar SDK'}\n"
        f"batches: {batch.micro_batch_size} (micro-batch) x {batch.replication_factor} (replicas) "
        f"x {batch.gradient_accumulation} (gradient accumulation) x {batch.device_iterations} "
        f"(device iterations) = {batch.combined_batch} images (combined batch)\n"
        f"epoch: {train} training images = {batch.host_calls} host calls x "
        f"{batch.combined_batch} + {batch.dropped} dropped; {batch.updates} weight updates of "
        f"{batch.global_batch} images; {validation} validation images"
    )
    groups = Table("parameter group", "weight decay", "tensors", "parameters")
    for group in run.optimizer.param_groups:
        sizes = [parameter.numel() for parameter in group["params"]]
        decay = f"{group['weight_decay']:g}"
        groups.add_row(group.get("name", ""), decay, str(len(sizes)), f"{sum(sizes):,}")
    console.print(groups)
    stages = Table("stage", "IPU of each replica", "layers", "parameters")
    for stage in run.stages:
        stages.add_row(str(stage.number), str(stage.ipu), stage.span, f"{stage.parameters:,}")
    console.print(stages)


def show_progress(
    run: Run, directory: RunDirectory, console: Console
) -> Tuple[EpochResult, EpochResult]:
    """Train with a progress bar and a line an epoch; return the last and the best epoch."""
    epochs = run.config.training.epochs
    ended: List[EpochResult] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=run.arithmetic.host_calls, figures="")
        for result in fit(run, directory):
            if isinstance(result, StepResult):
                progress.update(
                    task,
                    advance=1,
                    description=f"epoch {result.epoch}/{epochs}",
                    figures=f"loss {result.loss:.4f}  accuracy {result.accuracy:.1%}  "
                    f"{result.images_per_second:,.0f} images/s",
                )
                continue
            ended.append(result)
            progress.reset(task)
            console.print(
                f"epoch {result.epoch:{len(str(epochs))}}/{epochs}  "
                f"loss {result.loss:.4f}  accuracy {result.accuracy:.2%}  "
                f"{result.images_per_second:,.0f} images/s  |  validation: "
                f"loss {result.validation.loss:.4f}  accuracy {result.validation.accuracy:.2%}"
            )
    return ended[-1], [result for result in ended if result.best][-1]


def keys_table() -> Table:
    """Return every key of a run's configuration as a table."""
    table = Table("key", "type", "default", "meaning")
    for key in documentation():
        default = "(required)" if key.default == "???" else str(key.default)
        table.add_row(key.name, key.type, default, key.text)
    return table
