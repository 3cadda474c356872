"""``ipu-proxynorm validate RUN_DIR``: the accuracy of a run's checkpoints."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.run.agreement import agree, facts_of
from ipu_proxynorm.run.directory import CHECKPOINTS, RunDirectory
from ipu_proxynorm.run.processes import PATIENCE_SECONDS, Processes
from ipu_proxynorm.run.run import averaged, build, load_weights
from ipu_proxynorm.training import Evaluation, Validator


def add_parser(subparsers: Any) -> None:
    """Add ``validate`` to the sub-commands."""
    parser = subparsers.add_parser(
        "validate",
        help="measure the accuracy of a run's checkpoints",
        description="Measure loss and accuracy of checkpoints over the validation images.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="e.g. runs/quickstart")
    parser.add_argument(
        "--checkpoint",
        metavar="NAME",
        help="one of the run's checkpoints, e.g. last-1; default: last and best",
    )
    parser.set_defaults(command=run, distributed=True, patience=patience)


def patience(arguments: argparse.Namespace) -> float:
    """Return how long processes wait for one another; what is wrong with the run is said later."""
    try:
        return RunDirectory(arguments.run_dir).config().training.patience
    except UserError:
        return PATIENCE_SECONDS


def run(arguments: argparse.Namespace, console: Console, processes: Processes) -> None:
    """Build the run's network, load each checkpoint's weights and print their figures."""
    directory = RunDirectory(arguments.run_dir)
    with processes.together():
        config = directory.config()
    agree(processes, lambda: {"--checkpoint": arguments.checkpoint, **facts_of(config)})
    with processes.together():
        run = build(config, initialize=False, processes=processes)
        validator = Validator(run)
    agree(processes, lambda: {"the data set": run.images})
    for name in [arguments.checkpoint] if arguments.checkpoint else CHECKPOINTS:
        path = directory.checkpoint(name)
        with processes.together():
            checkpoint = load_checkpoint(path)
            load_weights(run, checkpoint)
        then = checkpoint.validation_accuracy
        console.print(
            f"{path} (epoch {checkpoint.epoch}): {figures(validator.evaluate())}; "
            f"in training: {'not validated' if then is None else f'{then:.2%}'}"
        )
        average = averaged(checkpoint)
        if average is not None:
            load_weights(run, average)
            console.print(f"{path}, averaged weights: {figures(validator.evaluate())}")


def figures(evaluation: Evaluation) -> str:
    """Return loss and accuracy in words."""
    return (
        f"validation loss {evaluation.loss:.4f}, accuracy {evaluation.accuracy:.2%} "
        f"({evaluation.right} of {evaluation.images} images)"
    )
