"""``ipu-proxynorm train CONFIG [key=value ...]``: train a network; keep weights and records."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any, List, Optional

from rich.console import Console
from rich.table import Table

from ipu_proxynorm.analysis.epoch_recorder import EpochRecorder
from ipu_proxynorm.backend import SIMULATED
from ipu_proxynorm.cli.arguments import add_config, read_config
from ipu_proxynorm.cli.keys import keys_text
from ipu_proxynorm.cli.output import stopping_when_lost
from ipu_proxynorm.cli.progress import epoch_progress
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import Checkpoint, load_checkpoint
from ipu_proxynorm.run.agreement import agree, facts_of
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.interruption import Interruption
from ipu_proxynorm.run.optimizer import scaled_learning_rate
from ipu_proxynorm.run.processes import PATIENCE_SECONDS, Processes
from ipu_proxynorm.run.run import Run
from ipu_proxynorm.training import EpochResult, Evaluation, StepResult, fit
from ipu_proxynorm.training.observers import Observers, observing
from ipu_proxynorm.training.resume import begin, changed
from ipu_proxynorm.training.smoke import smoke
from ipu_proxynorm.training.tracking import load_wandb

#: Options of the command line that decide what is done.
OPTIONS = ("checkpoint", "overwrite", "resume", "smoke")
#: Seconds in which torchrun passes on the Ctrl-C that the terminal has sent to all its processes.
SIGNAL_ECHO = 5.0


def add_parser(subparsers: Any) -> None:
    """Add ``train`` to the sub-commands."""
    parser = subparsers.add_parser(
        "train",
        help="train a network as a YAML file says",
        description="Train as CONFIG says; the run goes to <runs>/<name>/.",
    )
    add_config(parser, "training.epochs=1", nargs="?")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a run of the same name, if there is one"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run of that name where it stopped; begin it if there is none",
    )
    parser.add_argument(
        "--checkpoint", metavar="NAME", default="last", help="what --resume goes on from: last-1"
    )
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="try CONFIG: one small weight update on noise, in seconds; leaves nothing on disk",
    )
    parser.add_argument(
        "--keys",
        metavar="PATTERN",
        nargs="?",
        const="",
        help="list the keys of CONFIG with it in their names, e.g. norm; all without; and stop",
    )
    parser.set_defaults(command=run, distributed=True, patience=patience)


def patience(arguments: argparse.Namespace) -> float:
    """Return how long processes wait for one another; where CONFIG is wrong, that is said later."""
    try:
        return read_config(arguments).training.patience
    except UserError:
        return PATIENCE_SECONDS


def run(arguments: argparse.Namespace, console: Console, processes: Processes) -> None:
    """Train, printing first what the run is made of, then its progress."""
    if arguments.keys is not None:
        console.print(keys_text(arguments.keys, console.width))
        return
    interruption = Interruption(not processes.first, 0.0 if processes.alone else SIGNAL_ECHO)
    with stopping_when_lost(console, interruption):
        train(arguments, console, processes, interruption)


def train(
    arguments: argparse.Namespace,
    console: Console,
    processes: Processes,
    interruption: Interruption,
) -> None:
    """Train as the command line says."""
    with processes.together():
        config = read_config(arguments, trains=not arguments.smoke)
        if arguments.resume and arguments.overwrite:
            raise UserError("--resume --overwrite: one goes on with a run, the other removes it")
        wandb = load_wandb(config.training.wandb) if processes.first else None
    options = {f"--{name}": getattr(arguments, name) for name in OPTIONS}
    agree(processes, lambda: {**options, **facts_of(config)})
    if arguments.smoke:
        if processes.first:
            show_smoke(config, console)
        return
    with processes.together():
        directory = RunDirectory(Path(config.runs, config.name), writes=False)
        if processes.first and arguments.resume:
            directory = RunDirectory.held(config)
    try:
        run, start = begin(config, arguments.resume, arguments.checkpoint, processes)
        with processes.together():
            if processes.first and arguments.resume:
                directory.go_on(config)
            elif processes.first:
                directory = RunDirectory.create(config, arguments.overwrite)
        describe(run, console)
        if start is not None and start.state is not None:
            console.print(f"resumed after {start.state.progress}")
            differing = changed(run, start)
            if differing:
                console.print(f"changed since then: {'; '.join(differing)}")
        last = observed(run, directory, console, start, interruption, wandb)
    finally:
        directory.close()
    if processes.first:
        console.print(f"{summary(last, directory)}; run in {directory.path}")


def observed(
    run: Run,
    directory: RunDirectory,
    console: Console,
    start: Optional[Checkpoint],
    interruption: Interruption,
    wandb: Any,
) -> EpochResult:
    """Train, heeding signals; the first process records how the run stands."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruption.watch())
        observe: Optional[Observers] = None
        if run.processes.first:
            observe = stack.enter_context(observing(wandb, run.config, directory))
        return show_progress(run, directory, console, start, interruption, observe)


def summary(last: EpochResult, directory: RunDirectory) -> str:
    """Return the run's result in words."""
    if last.validation is None:
        return f"last epoch: training accuracy {last.accuracy:.2%}, not validated"
    best = load_checkpoint(directory.checkpoint("best"))
    average = last.average
    return (
        f"last epoch: validation accuracy {last.validation.accuracy:.2%} "
        f"({last.validation.right} of {last.validation.images})"
        + (f", averaged weights {average.accuracy:.2%}" if average is not None else "")
        + f"; best: {best.validation_accuracy:.2%} after epoch {best.epoch}"
    )


def show_smoke(config: RunConfig, console: Console) -> None:
    """Take one small weight update and print what was smaller, what ran and what came out."""
    result = smoke(config)
    console.print("\n".join(["smoke: smaller than CONFIG:", *(f"  {c}" for c in result.changes)]))
    describe(result.run, console)
    tensors = len(list(result.run.model.parameters()))
    console.print(
        f"smoke: passed: loss {result.step.loss:.4f} at learning rate "
        f"{result.step.learning_rate:g}; one update changed {result.updated} of {tensors} tensors"
    )


def describe(run: Run, console: Console) -> None:
    """Print the arithmetic of the batches, the parameter groups and the pipeline stages."""
    batch, (train, validation) = run.arithmetic, run.data.sizes()
    instance = run.processes.instance
    shared = f" of {instance.count} processes" if instance.count > 1 else ""
    console.print(
        f"{run.config.name}: {run.config.model.name} ({run.config.model.norm}) on "
        f"{run.data.name}, {'simulated' if SIMULATED else 'with the Poplar SDK'}\n"
        f"batches: {batch.micro_batch_size} (micro-batch) x {batch.replication_factor} "
        f"(replicas{shared}) x {batch.gradient_accumulation} (gradient accumulation) x "
        f"{batch.device_iterations} (device iterations) = {batch.combined_batch} images (combined "
        f"batch)\n"
        f"epoch: {train} training images = {batch.host_calls} host calls x "
        f"{batch.combined_batch} + {batch.dropped} dropped; {batch.updates} weight updates of "
        f"{batch.global_batch} images; {validation} validation images"
    )
    console.print(f"learning rate: {learning_rate(run)}")
    if run.origin:
        console.print(f"starts from the {run.origin}")
    groups = Table("parameter group", "weight decay", "tensors", "parameters")
    for group in run.optimizer.param_groups:
        sizes = [parameter.numel() for parameter in group["params"]]
        decay = f"{group['weight_decay']:g}"
        groups.add_row(group.get("name", ""), decay, str(len(sizes)), f"{sum(sizes):,}")
    frozen = sum(p.numel() for p in run.model.parameters() if not p.requires_grad)
    if frozen:
        groups.add_row("frozen", "", "", f"{frozen:,}")
    console.print(groups)
    stages = Table("stage", "IPU of each replica", "layers", "parameters")
    for stage in run.stages:
        stages.add_row(str(stage.number), str(stage.ipu), stage.span, f"{stage.parameters:,}")
    console.print(stages)


def learning_rate(run: Run) -> str:
    """Return the height of the learning rate and how it is arrived at, and its schedule."""
    optimizer, schedule = run.config.optimizer, run.config.schedule
    height = scaled_learning_rate(optimizer, run.arithmetic.global_batch)
    scaled = f" = {optimizer.lr:g} x {run.arithmetic.global_batch} / {optimizer.lr_batch}"
    epochs = f"{schedule.warmup_epochs:g} epoch{'' if schedule.warmup_epochs == 1 else 's'}"
    warmup = f" after {epochs} of warm-up" if schedule.warmup_epochs else ""
    return (
        f"{height:g}{scaled if optimizer.lr_batch is not None else ''} ({optimizer.name}), "
        f"{schedule.name}{warmup}; precision {run.config.ipu.precision}"
    )


def show_progress(
    run: Run,
    directory: RunDirectory,
    console: Console,
    start: Optional[Checkpoint],
    interruption: Interruption,
    observe: Optional[Observers],
) -> EpochResult:
    """Train with a progress bar and a line an epoch; return the last epoch.

    Where there is no terminal to draw a bar on, there is a line every training.line_seconds.
    """
    epochs = run.config.training.epochs
    ended: List[EpochResult] = []
    power = EpochRecorder(run.config, directory)
    if start is not None and run.processes.first:
        power.go_on(start)
    done = start.state.progress.call if start is not None and start.state is not None else 0
    progress = epoch_progress(console, run, done)
    with progress:
        for result in fit(run, directory, start, interruption):
            if isinstance(result, StepResult):
                if observe is not None:
                    observe(result)
                progress.advance(result)
                continue
            ended.append(result)
            progress.restart()
            console.print(
                f"epoch {result.epoch:{len(str(epochs))}}/{epochs}  "
                f"loss {result.loss:.4f}  accuracy {result.accuracy:.2%}  "
                f"{result.images_per_second:,.0f} images/s"
                f"{evaluated('validation', result.validation)}"
                f"{evaluated('averaged weights', result.average)}"
            )
            with run.processes.together():
                if observe is not None:
                    observe(result)
                if run.processes.first:
                    power.record(result.epoch)
    return ended[-1]


def evaluated(what: str, evaluation: Optional[Evaluation]) -> str:
    """Return loss and accuracy of a validation, for the line of an epoch."""
    if evaluation is None:
        return ""
    return f"  |  {what}: loss {evaluation.loss:.4f}  accuracy {evaluation.accuracy:.2%}"
