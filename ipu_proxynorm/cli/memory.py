"""``run_ipu.py memory CONFIG``: what a run takes of each IPU's memory, by prediction."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple

from rich.console import Console

from ipu_proxynorm.cli import memory_measured, reporting
from ipu_proxynorm.cli.arguments import add_config, norm_specs, read_config
from ipu_proxynorm.cli.memory_page import Cells, page
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError, unknown_name
from ipu_proxynorm.memory import (
    FITS,
    MIB,
    TERMS,
    IpuBudget,
    Prediction,
    ensemble,
    find_chip,
    ipu_budgets,
)
from ipu_proxynorm.memory.largest import Large, largest_layers, largest_tensors
from ipu_proxynorm.memory.predict import verdict_name
from ipu_proxynorm.memory.table import aligned, describe, term_name
from ipu_proxynorm.memory.timeline import timelines
from ipu_proxynorm.prediction.advice import predict_run
from ipu_proxynorm.prediction.footprint import Footprint, footprint

if TYPE_CHECKING:  # drawing needs matplotlib, which csv and json do without
    from matplotlib.figure import Figure

    from ipu_proxynorm.report.html import Report

NORMS = "bn,gn4,gn4+pn,ln+pn"
FORMATS = ("png", "svg", "csv", "json", "html")
#: A micro-batch, and the budget of the fullest IPU at it.
Sweep = List[Tuple[int, IpuBudget]]
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
    formats = formats_of(arguments.format)
    config = read_config(arguments)
    steps = None if arguments.micro_batch is None else micro_batches(arguments.micro_batch)
    if arguments.measured:
        memory_measured.refuse_without_sdk()
    norms = [config.model.norm]
    if arguments.norms is not None:
        norms = norm_specs(arguments.norms, NORMS)
    found = {norm: footprint(with_norm(config, norm)) for norm in norms}
    predictions = {
        norm: predict_run(one.config, one.capture, one.layout, one.points)
        for norm, one in found.items()
    }
    first = predictions[next(iter(predictions))]
    measured = memory_measured.measure(config) if arguments.measured else None
    show(config, predictions, console)
    if measured is not None:
        console.print(memory_measured.beside(first, measured))
    sweeps = {} if steps is None else {norm: sweep(one, steps) for norm, one in found.items()}
    if sweeps:
        console.print(f"\n{aligned(sweep_rows(sweeps))}")
        for sentence in largest_that_fit(sweeps):
            console.print(sentence)
    if arguments.output is not None:
        for path in write(Path(arguments.output), formats, config, predictions, sweeps):
            console.print(f"wrote {path}")


def formats_of(text: str) -> List[str]:
    """Return the formats between commas.

    Raises:
        UserError: one is unknown.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words or [text]:
        if word not in FORMATS:
            raise unknown_name("--format", word, FORMATS)
    return list(dict.fromkeys(words))


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


def with_norm(config: RunConfig, norm: str) -> RunConfig:
    """Return the configuration with another norm."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, norm=norm))


def fullest(budgets: Sequence[IpuBudget]) -> IpuBudget:
    """Return the budget of the fullest IPU."""
    return max(budgets, key=lambda budget: budget.utilisation)


def sweep(found: Footprint, steps: Sequence[int]) -> Sweep:
    """Return the fullest IPU at each micro-batch; everything else stays."""
    central = ensemble()[0]
    return [
        (step, fullest(ipu_budgets(found.capture.with_micro_batch(step), found.layout, central)))
        for step in steps
    ]


def largest(points: Sweep) -> Optional[int]:
    """Return the largest micro-batch up to which all fit; None: the first does not."""
    fitting = None
    for micro_batch, budget in points:
        if verdict_name(budget.utilisation) != FITS:
            break
        fitting = micro_batch
    return fitting


def largest_that_fit(sweeps: Mapping[str, Sweep]) -> List[str]:
    """Return a sentence for each norm."""
    sentences = []
    for norm, points in sweeps.items():
        best, last = largest(points), points[-1][0]
        if best is None:
            text = f"micro-batch {points[0][0]} does not surely fit"
        else:
            text = f"the largest micro-batch that fits is {best}"
            text += " (the last one tried)" if best == last else ""
        sentences.append(f"{norm}: {text}")
    return sentences


def sweep_rows(sweeps: Mapping[str, Sweep]) -> List[List[str]]:
    """Return cells: a row a micro-batch, MiB and share of the fullest IPU for each norm."""
    rows = [["micro-batch", *sweeps]]
    for cells in zip(*sweeps.values()):
        shown = [f"{b.used / MIB:,.0f} MiB {b.utilisation:4.0%}" for _, b in cells]
        rows.append([str(cells[0][0]), *shown])
    return rows


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


def norm_rows(predictions: Mapping[str, Prediction]) -> List[List[str]]:
    """Return the terms of the fullest IPU for each norm, side by side."""
    budgets = [fullest(prediction.ipus) for prediction in predictions.values()]
    rows = [["fullest IPU, MiB", *predictions]]
    rows += [
        [term_name(term), *(f"{budget.terms[term] / MIB:,.0f}" for budget in budgets)]
        for term in TERMS
        if any(budget.terms[term] for budget in budgets)
    ]
    rows.append(["in use", *(f"{budget.used / MIB:,.0f}" for budget in budgets)])
    rows.append(["utilisation", *(f"{budget.utilisation:.0%}" for budget in budgets)])
    return rows


def large_rows(title: str, found: Sequence[Large]) -> List[List[str]]:
    """Return cells of the largest tensors or layers."""
    shapes = ["x".join(map(str, one.shape)) for one in found]
    return [
        [title, "stage", "MiB", "shape" if any(shapes) else ""],
        *(
            [one.name, str(one.stage), f"{one.bytes / MIB:,.1f}", shape]
            for one, shape in zip(found, shapes)
        ),
    ]


def write(
    folder: Path,
    formats: Sequence[str],
    config: RunConfig,
    predictions: Mapping[str, Prediction],
    sweeps: Mapping[str, Sweep],
) -> List[Path]:
    """Write tables and pictures, and return the files.

    Raises:
        UserError: matplotlib is missing, or the folder cannot be written.
    """

    def figures() -> Dict[str, Figure]:
        return draw(config, predictions, sweeps)

    columns = ("norm", "micro_batch", "ipu", *TERMS, "used", "capacity")
    rows = [
        [norm, micro_batch, b.ipu, *(b.terms[term] for term in TERMS), b.used, b.capacity]
        for norm, micro_batch, b in all_budgets(predictions, sweeps)
    ]

    def report() -> Report:
        return page(config, predictions, page_tables(predictions, sweeps), figures())

    findings = reporting.Findings(columns, rows, values_of(predictions, sweeps), figures, report)
    return reporting.write(folder, formats, findings, "--output")


def page_tables(predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]) -> List[Cells]:
    """Return what the page has besides each prediction's own table."""
    capture = predictions[next(iter(predictions))].capture
    tables: List[Cells] = [("Norms side by side", norm_rows(predictions))]
    if sweeps:
        caption = f"The fullest IPU by micro-batch; {'; '.join(largest_that_fit(sweeps))}"
        tables.append((caption, sweep_rows(sweeps)))
    layers = large_rows("layer, what is kept of it", largest_layers(capture))
    return [
        *tables,
        ("Largest tensors", large_rows("tensor", largest_tensors(capture))),
        ("Largest layers", layers),
    ]


def all_budgets(
    predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]
) -> List[Tuple[str, int, IpuBudget]]:
    """Return every budget with norm and micro-batch: of all IPUs as given, of the fullest swept."""
    found = [
        (norm, prediction.capture.micro_batch, budget)
        for norm, prediction in predictions.items()
        for budget in prediction.ipus
    ]
    return found + [(norm, at, budget) for norm, points in sweeps.items() for at, budget in points]


def values_of(predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]) -> Dict[str, Any]:
    """Return everything as plain values, bytes."""
    return {
        "predictions": {
            norm: {
                "verdict": dataclasses.asdict(prediction.verdict),
                "micro_batch": prediction.capture.micro_batch,
                "throughput": dataclasses.asdict(prediction.throughput),
                "ipus": [dataclasses.asdict(budget) for budget in prediction.ipus],
                "advice": [str(advice) for advice in prediction.advice],
                "largest_tensors": list(
                    map(dataclasses.asdict, largest_tensors(prediction.capture))
                ),
                "largest_layers": list(map(dataclasses.asdict, largest_layers(prediction.capture))),
            }
            for norm, prediction in predictions.items()
        },
        "sweeps": {
            norm: {
                "largest_that_fits": largest(points),
                "fullest_ipu_bytes": {str(at): budget.used for at, budget in points},
            }
            for norm, points in sweeps.items()
        },
    }


def draw(
    config: RunConfig, predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]
) -> Dict[str, Figure]:
    """Return the pictures by file name."""
    import ipu_proxynorm.report.figure  # noqa: F401  says what to install where it is missing
    from ipu_proxynorm.report.memory import bars, by_micro_batch, over_time

    norm, first = next(iter(predictions.items()))
    what = f"{config.model.name} ({norm}), micro-batch {first.capture.micro_batch}"
    capacity = find_chip(config.ipu.chip).sram_bytes
    figures = {
        "ipus": bars([(f"IPU {b.ipu}", b) for b in first.ipus], f"{what}: memory of each IPU"),
        "time": over_time(timelines(first), capacity, f"{what}: over one weight update"),
    }
    if len(predictions) > 1:
        budgets = [(name, fullest(p.ipus)) for name, p in predictions.items()]
        title = f"{config.model.name}, micro-batch {first.capture.micro_batch}: the fullest IPU"
        figures["norms"] = bars(budgets, title)
    if sweeps:
        lines = {name: [(at, b.used) for at, b in points] for name, points in sweeps.items()}
        figures["micro_batch"] = by_micro_batch(lines, capacity, f"{config.model.name}")
    return figures
