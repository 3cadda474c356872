"""``ipu-proxynorm memory CONFIG``: predicts how much of each IPU's memory a run takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, List, Mapping

from rich.console import Console

from ipu_proxynorm.cli.arguments import add_config, norm_specs, read_config
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory import (
    MIB,
    Prediction,
)
from ipu_proxynorm.memory.largest import largest_layers, largest_tensors
from ipu_proxynorm.memory.table import aligned, describe
from ipu_proxynorm.prediction import measured
from ipu_proxynorm.prediction.advice import predict_run
from ipu_proxynorm.prediction.footprint import footprint
from ipu_proxynorm.prediction.sweep import largest_that_fit, sweep, with_norm
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.memory_page import memory_findings
from ipu_proxynorm.report.memory_tables import large_rows, measured_rows, norm_rows, sweep_rows

NORMS = "bn,gn4,gn4+pn,ln+pn"
FORMATS = ("png", "svg", "csv", "json", "html")
_MOST_STEPS = 128


def add_parser(subparsers: Any) -> None:
    """Add ``memory`` to the sub-commands."""
    parser = subparsers.add_parser(
        "memory",
        help="predict what a run takes of each IPU's memory",
        description="Predict the SRAM that CONFIG's training program takes on each IPU of a "
        "replica, term by term, without IPUs, data or the Poplar SDK.",
    )
    add_config(parser, "ipu.chip=bow")
    parser.add_argument("--norms", help=f"norm specs side by side, e.g. {NORMS}")
    parser.add_argument(
        "--micro-batch", metavar="A..B", help="sweep the micro-batch, e.g. 1..32, for the largest"
    )
    parser.add_argument("--output", metavar="DIR", help="write tables and pictures there")
    parser.add_argument(
        "--format",
        default=",".join(FORMATS),
        help=f"what to write, of {', '.join(FORMATS)}; default: all",
    )
    parser.add_argument(
        "--measured",
        action="store_true",
        help="compile with profiling and put the compiler's figures beside (needs the Poplar SDK; "
        "not run on hardware)",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Predict, print, and write what was asked for."""
    formats = findings.formats_of(arguments.format, FORMATS)
    config = read_config(arguments)
    steps = None if arguments.micro_batch is None else micro_batches(arguments.micro_batch)
    if arguments.measured:
        measured.refuse_without_sdk()
    norms = [config.model.norm]
    if arguments.norms is not None:
        norms = norm_specs(arguments.norms, NORMS)
    found = {norm: footprint(with_norm(config, norm)) for norm in norms}
    predictions = {
        norm: predict_run(one.config, one.capture, one.layout, one.points)
        for norm, one in found.items()
    }
    first = predictions[next(iter(predictions))]
    compiled = measured.measure(config) if arguments.measured else None
    show(config, predictions, console)
    if compiled is not None:
        console.print(aligned(measured_rows(first, compiled)))
    sweeps = {} if steps is None else {norm: sweep(one, steps) for norm, one in found.items()}
    if sweeps:
        console.print(f"\n{aligned(sweep_rows(sweeps))}")
        for sentence in largest_that_fit(sweeps):
            console.print(sentence)
    if arguments.output is not None:
        to_write = memory_findings(config, predictions, sweeps)
        for path in findings.write(Path(arguments.output), formats, to_write, "--output"):
            console.print(f"wrote {path}")


def micro_batches(text: str) -> List[int]:
    """Return the micro-batches of ``A..B``.

    Raises:
        UserError: it is no such range.
    """
    low, dots, high = text.partition("..")
    try:
        first, last = int(low), int(high if dots else low)
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last or last - first >= _MOST_STEPS:
        raise UserError(
            f"--micro-batch {text}: expected two numbers A..B from 1 up, B no less than A and at "
            f"most {_MOST_STEPS} of them, e.g. 1..32"
        )
    return list(range(first, last + 1))


def show(config: RunConfig, predictions: Mapping[str, Prediction], console: Console) -> None:
    """Print verdicts, tables, advice and what is largest."""
    for norm, prediction in predictions.items():
        ipus, replicas = len(prediction.ipus), prediction.layout.replicas
        sizes = (
            prediction.replica_bytes,
            prediction.system_bytes,
            prediction.streaming_memory_bytes,
        )
        replica, system, streamed = (f"{size / MIB:,.0f} MiB" for size in sizes)
        console.print(
            f"{config.name}: {config.model.name} ({norm}), micro-batch "
            f"{prediction.capture.micro_batch}, {config.ipu.chip}, precision "
            f"{prediction.layout.precision}; {counted(ipus, 'IPU')} a replica x "
            f"{counted(replicas, 'replica')}: {replica} a replica, {system} in all, Streaming "
            f"Memory {streamed}"
        )
        console.print(f"{describe(prediction)}\n")
    if len(predictions) > 1:
        console.print(f"{aligned(norm_rows(predictions))}\n")
    capture = predictions[next(iter(predictions))].capture
    console.print(aligned(large_rows("largest tensors", largest_tensors(capture, 8))))
    console.print()
    console.print(aligned(large_rows("largest layers (kept)", largest_layers(capture, 8))))


def counted(number: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
