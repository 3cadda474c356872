"""``run_ipu.py validate RUN_DIR``: the accuracy of a run's checkpoint."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console

from ipu_proxynorm.training import RunDirectory, build, evaluate, load_checkpoint, load_weights
from ipu_proxynorm.training.run_directory import CHECKPOINTS


def add_parser(subparsers: Any) -> None:
    """Add ``validate`` to the sub-commands."""
    parser = subparsers.add_parser(
        "validate",
        help="measure the accuracy of a run's checkpoint",
        description="Measure loss and accuracy of a checkpoint over the validation images.",
    )
    parser.add_argument("run_dir", metavar="RUN_DIR", help="e.g. runs/quickstart")
    parser.add_argument(
        "--checkpoint", choices=CHECKPOINTS, default="best", help="default: %(default)s"
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Build the run's network, load the checkpoint's weights and print their figures."""
    directory = RunDirectory(arguments.run_dir)
    run = build(directory.config())
    checkpoint = load_checkpoint(directory.checkpoint(arguments.checkpoint))
    load_weights(run, checkpoint)
    evaluation = evaluate(run)
    console.print(
        f"{directory.checkpoint(arguments.checkpoint)} (epoch {checkpoint.epoch}): "
        f"validation loss {evaluation.loss:.4f}, accuracy {evaluation.accuracy:.2%} "
        f"({evaluation.right} of {evaluation.images} images)"
    )
