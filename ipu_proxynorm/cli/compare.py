"""``run_ipu.py compare CONFIG``: the same run under several norms and micro-batch sizes."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any, List

from rich.console import Console

from ipu_proxynorm.analysis.comparison import (
    DIVERGED,
    DONE,
    UNDEFINED,
    Cell,
    Row,
    RowStore,
    plan_cells,
    summarize,
    thin,
)
from ipu_proxynorm.cli import reporting
from ipu_proxynorm.cli.arguments import add_config, integers, norm_specs, read_config, words
from ipu_proxynorm.cli.compare_report import (
    epochs_of,
    findings,
    global_batch,
    predicted_sram,
    table,
)
from ipu_proxynorm.config import RunConfig, documentation, load
from ipu_proxynorm.config.check import get
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.training.trial import train_trial, why_undefined

NORMS = "bn,gn4,gn4+pn,ln,ln+pn"
#: Keys that a cell sets by itself, and what to vary them with.
OWN = {
    "name": "runs are named after what they vary",
    "runs": "choose the folder with --out",
    "seed": "choose with --seeds",
    "model.norm": "choose with --norms",
    "ipu.micro_batch_size": "choose with --micro-batch",
    "ipu.gradient_accumulation": "it follows from --micro-batch and the images per weight update",
}


def add_parser(subparsers: Any) -> None:
    """Add ``compare`` to the sub-commands."""
    parser = subparsers.add_parser(
        "compare",
        help="train under several norms and micro-batch sizes, and compare",
        description="Train CONFIG under several norm specs and micro-batch sizes, with the images "
        "per weight update kept constant, and compare. Runs that are done are kept: a rerun does "
        "what is missing.",
    )
    add_config(parser, "training.epochs=1", example="configs/compare/digits.yaml")
    parser.add_argument("--norms", default=NORMS, help=f"norm specs; default: {NORMS}")
    parser.add_argument(
        "--micro-batch", default=None, help="micro-batch sizes, e.g. 1,2,4; default: CONFIG's"
    )
    parser.add_argument("--seeds", default="0", help="seeds, e.g. 0,1,2; default: 0")
    parser.add_argument(
        "--vary",
        metavar="KEY=V1,V2",
        action="append",
        default=[],
        help="a further axis, e.g. training.label_smoothing=0,0.1; may be given again",
    )
    parser.add_argument("--out", help="folder of rows and report; default: <runs>/compare-<name>")
    reporting.add_format(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run what is missing, then print the table and write the report."""
    formats = reporting.formats_of(arguments.format)
    base = read_config(arguments)
    cells = cells_of(arguments, base)
    configs = [cell_config(arguments, base, cell) for cell in cells]  # all checked before any runs
    folder = out_folder(arguments, base)
    reporting.check_writable(folder)
    store = RowStore(folder / "rows.jsonl")
    fingerprint = fingerprint_of(base)
    done = {row.cell: row for row in store.read() if row.fingerprint == fingerprint}
    missing = [(cell, config) for cell, config in zip(cells, configs) if cell not in done]
    console.print(
        f"{base.name}: {len(cells)} run{'' if len(cells) == 1 else 's'} of {epochs_of(base)}, "
        f"{global_batch(base)} images per weight update; {len(cells) - len(missing)} of them done"
    )
    for number, (cell, config) in enumerate(missing, start=1):
        start = time.perf_counter()
        row = run_cell(cell, config, fingerprint, folder)
        store.add(row)
        done[cell] = row
        console.print(
            f"{number}/{len(missing)}  {cell.name}: {outcome(row)}  "
            f"({time.perf_counter() - start:.0f} s)"
        )
    rows = [done[cell] for cell in cells]
    sram = predicted_sram(dict(zip(cells, configs)), rows, console)
    console.print(table(summarize(rows), sram))
    for path in reporting.write(folder, formats, findings(base, rows, sram)):
        console.print(f"wrote {path}")


def run_cell(cell: Cell, config: RunConfig, fingerprint: str, folder: Path) -> Row:
    """Train one cell, or say why its norm is undefined."""
    config = dataclasses.replace(config, name=cell.name, runs=str(folder / "runs"))
    common = {**dataclasses.asdict(cell), "varied": cell.varied, "fingerprint": fingerprint}
    reason = why_undefined(config)
    if reason:
        return Row(**common, status=UNDEFINED, reason=reason)
    trial = train_trial(config)
    values = {**vars(trial), "curve": tuple(trial.curve)}
    values["losses"] = thin(trial.losses, values.pop("epochs"))
    reason = values.pop("diverged")
    return Row(**common, status=DIVERGED if reason else DONE, reason=reason, **values)


def outcome(row: Row) -> str:
    """Return what came out of one cell, in words."""
    if row.status == DONE and row.accuracy is not None:
        return f"validation accuracy {row.accuracy:.2%}"
    return f"{row.status}: {row.reason}"


def cells_of(arguments: argparse.Namespace, base: RunConfig) -> List[Cell]:
    """Return the cells that the command line asks for.

    Raises:
        UserError: a list is empty or not of the kind that it should be.
    """
    norms = norm_specs(arguments.norms, NORMS)
    sizes = arguments.micro_batch or str(base.ipu.micro_batch_size)
    varied = [overrides_of(text) for text in arguments.vary]
    keys = [overrides[0].partition("=")[0] for overrides in varied]
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f"--vary {key}: given twice; give all its values at once: {key}=V1,V2")
    return plan_cells(
        norms, integers("--micro-batch", sizes, 1), integers("--seeds", arguments.seeds, 0), varied
    )


def overrides_of(text: str) -> List[str]:
    """Return the overrides of one ``KEY=V1,V2``.

    Raises:
        UserError: it is not of that form, or the key is one that compare sets itself.
    """
    key, _, values = text.partition("=")
    if not key or not words(values):
        raise UserError(
            f"--vary {text!r}: expected KEY=VALUE,VALUE, e.g. training.label_smoothing=0,0.1"
        )
    if key in OWN:
        raise UserError(f"--vary {text!r}: compare sets {key} itself; {OWN[key]}")
    return [f"{key}={value}" for value in words(values)]


def cell_config(arguments: argparse.Namespace, base: RunConfig, cell: Cell) -> RunConfig:
    """Return the checked configuration of one cell: the same images per weight update.

    Raises:
        UserError: the micro-batch does not divide them, what is varied changes them, or the
            configuration is not allowed.
    """
    images = cell.micro_batch * base.ipu.replication_factor
    if global_batch(base) % images:
        raise UserError(
            f"--micro-batch {cell.micro_batch}: {cell.micro_batch} x {base.ipu.replication_factor} "
            f"(replicas) does not divide the {global_batch(base)} images per weight update that "
            f"CONFIG has; choose divisors, or another ipu.gradient_accumulation"
        )
    own = [
        f"model.norm={cell.norm}",
        f"ipu.micro_batch_size={cell.micro_batch}",
        f"ipu.gradient_accumulation={global_batch(base) // images}",
        f"seed={cell.seed}",
    ]
    config = load(arguments.config, [*arguments.overrides, *own, *cell.varied])
    if global_batch(config) != global_batch(base):
        raise UserError(
            f"--vary {', '.join(cell.varied)}: that is {global_batch(config)} images per weight "
            f"update instead of CONFIG's {global_batch(base)}; vary keys that leave them as they "
            f"are, or compare twice"
        )
    if config.training.validate == "never":
        raise UserError(
            "training.validate=never: a comparison needs the accuracy after the last epoch; set "
            "it to epoch or end"
        )
    return config


def fingerprint_of(base: RunConfig) -> str:
    """Return a digest of what all cells share; a row of another one is run again.

    Keys at their defaults do not enter: rows stay valid when the program gains keys.
    """
    defaults = {key.name: key.default for key in documentation()}
    shared = {
        name: get(base, name)
        for name, default in sorted(defaults.items())
        if name not in OWN and get(base, name) != default
    }
    text = json.dumps({**shared, "images per weight update": global_batch(base)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def out_folder(arguments: argparse.Namespace, base: RunConfig) -> Path:
    """Return the folder of rows, runs and report."""
    return Path(arguments.out or Path(base.runs, f"compare-{base.name}"))
