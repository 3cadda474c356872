"""``ipu-proxynorm memory CONFIG``: predicts how much of each IPU's memory a run takes."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Dict, List, Mapping

from rich.console import Console

from ipu_proxynorm.cli.arguments import add_config, norm_specs, read_config
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory import (
    MIB,
    Prediction,
    predict_capture,
)
from ipu_proxynorm.memory.largest import largest_layers, largest_tensors
from ipu_proxynorm.memory.table import aligned, describe
from ipu_proxynorm.prediction import measured
from ipu_proxynorm.prediction.advice import predict_run
from ipu_proxynorm.prediction.footprint import Footprint, footprint
from ipu_proxynorm.prediction.foreign import ForeignFootprint, foreign_footprint
from ipu_proxynorm.prediction.proxy_scales import places_of_scales, scale_sentence
from ipu_proxynorm.prediction.sweep import largest_that_fit, sweep, with_norm
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.memory_page import memory_findings
from ipu_proxynorm.report.memory_tables import large_rows, measured_rows, norm_rows, sweep_rows
from ipu_proxynorm.run.foreign import names_module, parse_inputs

NORMS = "bn,gn4,gn4+pn,ln+pn"
FORMATS = ("png", "svg", "csv", "json", "html")
_MOST_STEPS = 128


def add_parser(subparsers: Any) -> None:
    """Add ``memory`` to the sub-commands."""
    parser = subparsers.add_parser(
        "memory",
        help="predict what a run takes of each IPU's memory",
        description="Predict the SRAM that a training program takes on each IPU of a replica, term "
        "by term, without IPUs, data or the Poplar SDK: CONFIG's, or that of any module of yours, "
        "file.py:factory or package.module:factory, on inputs of the shapes of --input. Exit "
        "status: 0; 1 if --fail-over is exceeded; 2 for wrong input.",
    )
    add_config(parser, "ipu.chip=bow", or_module=True)
    parser.add_argument(
        "--input",
        metavar="SHAPE",
        action="append",
        default=[],
        help="of a module: shape and type of an input, e.g. 4x3x224x224 or 8x128:int64; repeated "
        "for further ones",
    )
    parser.add_argument(
        "--inference", action="store_true", help="of a module: without a backward pass"
    )
    parser.add_argument(
        "--fail-over",
        metavar="PERCENT",
        type=float,
        help="exit with status 1 if more of the fullest IPU is predicted to be taken, e.g. 85",
    )
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


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Predict, print, and write what was asked for; return the exit status."""
    formats = findings.formats_of(arguments.format, FORMATS)
    limit = arguments.fail_over
    if limit is not None and not 0 < limit < math.inf:
        raise UserError(f"--fail-over {limit}: expected a percentage above 0, e.g. 85")
    if arguments.output is not None:
        findings.check_drawing(formats)
        findings.check_writable(Path(arguments.output), "--output")
    steps = None if arguments.micro_batch is None else micro_batches(arguments.micro_batch)
    if arguments.measured:
        measured.refuse_without_sdk()
    found = footprints(arguments)
    config = next(iter(found.values())).config
    predictions = {norm: predicted(one) for norm, one in found.items()}
    first = predictions[next(iter(predictions))]
    compiled = measured.measure(config) if arguments.measured else None
    show(config, predictions, console)
    for norm, one in found.items():
        if not isinstance(one, ForeignFootprint):
            sentence = scale_sentence(places_of_scales(one.model, one.capture))
            if sentence:
                console.print(f"{norm}: Proxy Norm's scale of each unit: {sentence}")
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
    used = 100 * max(prediction.verdict.utilisation for prediction in predictions.values())
    if limit is not None and used > limit:
        console.print(f"--fail-over {limit:g}: the fullest IPU is predicted at {used:.1f} %")
        return 1
    return 0


def predicted(one: Footprint) -> Prediction:
    """Return the prediction with advice: of a run with the keys to change, of a module without."""
    if isinstance(one, ForeignFootprint):
        return predict_capture(one.capture, one.layout, advise=True, points=one.points)
    return predict_run(one.config, one.capture, one.layout, one.points)


def footprints(arguments: argparse.Namespace) -> Dict[str, Footprint]:
    """Return what is to be predicted, by norm; of a module there is the one as it is.

    Raises:
        UserError: an option does not go with what is asked about, or it cannot be built or traced.
    """
    if arguments.config is not None and names_module(arguments.config):
        for option in ("norms", "measured"):
            if getattr(arguments, option):
                raise UserError(f"--{option}: it needs a CONFIG, not the module {arguments.config}")
        inputs = parse_inputs(arguments.config, arguments.input)
        training = not arguments.inference
        one = foreign_footprint(arguments.config, inputs, arguments.overrides, training=training)
        return {"training" if training else "inference": one}
    for option in ("input", "inference"):
        if getattr(arguments, option):
            raise UserError(f"--{option}: it needs a module such as net.py:factory, not a CONFIG")
    config = read_config(arguments, trains=False)
    norms = [config.model.norm]
    if arguments.norms is not None:
        norms = norm_specs(arguments.norms, NORMS)
    return {norm: footprint(with_norm(config, norm)) for norm in norms}


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
