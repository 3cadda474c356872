"""``ipu-proxynorm benchmark CONFIG``: how fast a run trains, host and device apart."""

from __future__ import annotations

import argparse
import statistics
from typing import Any, List

from rich.console import Console

from ipu_proxynorm.backend import SIMULATED
from ipu_proxynorm.cli.arguments import add_config, read_config
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.training.timing import Timing, time_on_device, time_on_images

#: More host calls than that are a training run.
MOST_CALLS = 10_000


def add_parser(subparsers: Any) -> None:
    """Add ``benchmark`` to the sub-commands."""
    parser = subparsers.add_parser(
        "benchmark",
        help="time a run's host calls, and the wait for its images",
        description="Train for a few host calls and print their times; nothing is kept.",
    )
    add_config(parser, "data.workers=4")
    parser.add_argument(
        "--device-data",
        action="store_true",
        help="compute on random numbers that the device makes: no images, nothing travels",
    )
    parser.add_argument(
        "--calls", type=int, default=10, metavar="N", help="host calls after the first; default: 10"
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Time, and print medians with the shortest and the longest."""
    if not 1 <= arguments.calls <= MOST_CALLS:
        raise UserError(f"--calls {arguments.calls}: expected 1 to {MOST_CALLS}")
    config = read_config(arguments, trains=not arguments.device_data)
    timing = (time_on_device if arguments.device_data else time_on_images)(config, arguments.calls)
    batch = timing.arithmetic
    console.print(
        f"{config.name}: {config.model.name} ({config.model.norm}) on {timing.data}, "
        f"{'simulated: times of this machine, not of IPUs' if SIMULATED else 'on IPUs'}"
    )
    console.print(
        f"host call: {batch.micro_batch_size} (micro-batch) x {batch.replication_factor} "
        f"(replicas) x {batch.gradient_accumulation} (gradient accumulation) x "
        f"{batch.device_iterations} (device iterations) = {batch.combined_batch} images"
    )
    computation = f"; {timing.computation}" if timing.computation else ""
    console.print(f"compiled in {timing.compilation:.1f} s{computation}")
    for line in lines(timing):
        console.print(line)


def lines(timing: Timing) -> List[str]:
    """Return the times in words."""
    each = timing.arithmetic.device_iterations
    found = [
        f"{len(timing.calls)} host calls after the first: {spread(timing.calls)} each, "
        f"{timing.images_per_second:,.0f} images/s"
    ]
    if each > 1:
        found.append(f"weight update: {1e3 * statistics.median(timing.calls) / each:,.1f} ms")
    if timing.waits:
        share = sum(timing.waits) / (sum(timing.waits) + sum(timing.calls))
        found.append(
            f"waited for the images of each: {spread(timing.waits)}, {share:.1%} of the time"
        )
    return found


def spread(seconds: List[float]) -> str:
    """Return the median of times with the shortest and the longest, milliseconds."""
    low, middle, high = (1e3 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:,.1f} ms ({low:,.1f} to {high:,.1f})"
