"""``run_ipu.py validate RUN_DIR``: the accuracy of a run's checkpoints."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from ipu_proxynorm.training import RunDirectory, Validator, build, load_checkpoint, load_weights
from ipu_proxynorm.training.run_directory import CHECKPOINTS


def add_parser(subparsers: Any) -> None:
    """Add ``validate`` to the sub-commands."""
    parser = subparsers.add_parser(
        "validate",
        help="measure the accuracy of a run's checkpoints",
        description="Measure loss and accuracy of checkpoints over the validation images.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="e.g. runs/quickstart")
    parser.add_argument(
        "--checkpoint", choices=CHECKPOINTS, help="one of the run's checkpoints; default: both"
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Build the run's network, load each checkpoint's weights and print their figures."""
    directory = RunDirectory(arguments.run_dir)
    run = build(directory.config())
    validator = Validator(run)
    for name in [arguments.checkpoint] if arguments.checkpoint else CHECKPOINTS:
        path = directory.checkpoint(name)
        checkpoint = load_checkpoint(path)
        load_weights(run, checkpoint)
        evaluation = validator.evaluate()
        console.print(
            f"{path} (epoch {checkpoint.epoch}): validation loss {evaluation.loss:.4f}, "
            f"accuracy {evaluation.accuracy:.2%} ({evaluation.right} of {evaluation.images} "
            f"images); in training: {checkpoint.validation_accuracy:.2%}"
        )
