"""``ipu-proxynorm compare CONFIG``: the same run under several norms and micro-batch sizes."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

from rich.console import Console
from rich.table import Table

from ipu_proxynorm.analysis.cells import (
    OWN,
    Sram,
    cell_or_reason,
    fingerprints_of,
    predicted_sram,
    run_cell,
)
from ipu_proxynorm.analysis.comparison import (
    DONE,
    Cell,
    Row,
    Summary,
    plan_cells,
    summarize,
)
from ipu_proxynorm.analysis.proxies import PROXIES
from ipu_proxynorm.analysis.row_store import RowStore
from ipu_proxynorm.cli.arguments import (
    add_config,
    add_format,
    integers,
    norm_specs,
    read_config,
    report_formats,
    words,
)
from ipu_proxynorm.cli.output import stopping_when_lost
from ipu_proxynorm.cli.progress import epoch_progress
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError, unknown_name
from ipu_proxynorm.norm import parse_norm_spec
from ipu_proxynorm.prediction.planning import global_batch
from ipu_proxynorm.report import findings
from ipu_proxynorm.report.comparison_page import comparison_findings, epochs_of
from ipu_proxynorm.report.comparison_tables import (
    COLUMNS,
    missing_runs,
    notes,
    table_rows,
    without_variant,
)
from ipu_proxynorm.run.interruption import Interrupted, Interruption
from ipu_proxynorm.run.run import Run
from ipu_proxynorm.training import StepResult
from ipu_proxynorm.training.trial import Results, Show

NORMS = "bn,gn4,gn4+pn,ln,ln+pn"


def add_parser(subparsers: Any) -> None:
    """Add ``compare`` to the sub-commands."""
    parser = subparsers.add_parser(
        "compare",
        help="train under several norms and micro-batch sizes, and compare",
        description="Train CONFIG under several norm specs and micro-batch sizes, with the images "
        "per weight update kept constant, and compare. Runs that are done are kept, and one that "
        "was stopped is gone on with: a rerun does what is missing.",
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
    parser.add_argument(
        "--for",
        dest="own",
        metavar="NORM:KEY=VALUE",
        action="append",
        default=[],
        help="a key for one norm alone, e.g. gn4:optimizer.lr=0.05; may be given again",
    )
    parser.add_argument(
        "--proxy",
        metavar="KIND",
        help="a diagnosis, no norm to train with: what stands for the moments of the activation "
        f"behind norms with +pn, of {','.join(PROXIES)}; the last two depend on the micro-batch",
    )
    parser.add_argument(
        "--done",
        action="store_true",
        help="train nothing: table and report of the runs that are done, and which are missing",
    )
    parser.add_argument("--out", help="folder of rows and report; default: <runs>/compare-<name>")
    add_format(parser)
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Run what is missing, then print the table and write the report."""
    formats = report_formats(arguments)
    base = read_config(arguments)
    cells = cells_of(arguments, base)
    configs = [  # all checked before any runs
        cell_or_reason(arguments.config, arguments.overrides, base, cell) for cell in cells
    ]
    folder = out_folder(arguments, base)
    findings.check_writable(folder)
    store = RowStore(folder / "rows.jsonl")
    fingerprints = dict(zip(cells, fingerprints_of(base, configs)))
    done = {row.cell: row for row in store.read() if row.fingerprint == fingerprints.get(row.cell)}
    missing = [(cell, config) for cell, config in zip(cells, configs) if cell not in done]
    console.print(
        f"{base.name}: {len(cells)} run{'' if len(cells) == 1 else 's'} of "
        f"{epochs_of(base.training.epochs)}, "
        f"{global_batch(base)} images per weight update; {len(cells) - len(missing)} of them done"
    )
    waiting = [] if arguments.done else missing
    with Interruption().watch() as interruption, stopping_when_lost(console, interruption):
        for number, (cell, config) in enumerate(waiting, start=1):
            start = time.perf_counter()
            row = stoppable_cell(cell, config, fingerprints[cell], folder, interruption, console)
            store.add(row)
            done[cell] = row
            console.print(
                f"{number}/{len(waiting)}  {cell.name}: {outcome(row)}  "
                f"({time.perf_counter() - start:.0f} s)"
            )
            if interruption.signal_number is not None:  # after the last host call of a run
                raise Interrupted(
                    f"interrupted after {cell.name}: the same command goes on",
                    interruption.signal_number,
                )
    rows = [done[cell] for cell in cells if cell in done]
    if not rows:
        raise UserError("--done: none of these runs is done; leave it out to train them")
    left_out = missing_runs([cell for cell in cells if cell not in done])
    sram, unknown = predicted_sram(dict(zip(cells, configs)), rows)
    for sentence in unknown:
        console.print(sentence)
    summaries = summarize(rows)
    console.print(table(summaries, sram))
    for sentence in [*left_out, *notes(summaries)]:
        console.print(sentence)
    for path in findings.write(folder, formats, comparison_findings(base, rows, sram, left_out)):
        console.print(f"wrote {path}")


def stoppable_cell(
    cell: Cell,
    config: Union[RunConfig, str],
    fingerprint: str,
    folder: Path,
    interruption: Interruption,
    console: Console,
) -> Row:
    """Run one cell, with a checkpoint of it where a signal asks to stop.

    Raises:
        Interrupted: it did.
    """
    try:
        return run_cell(cell, config, fingerprint, folder, interruption, progress_on(console))
    except Interrupted as error:
        raise Interrupted(
            f"interrupted in {cell.name}, with a checkpoint of it: the same command goes on",
            error.signal_number,
        ) from error


def progress_on(console: Console) -> Show:
    """Return what shows how far a run is."""

    def show(run: Run, done: int, results: Results) -> None:
        progress = epoch_progress(console, run, done)
        progress.before = f"{run.config.name}  "
        with progress:
            for result in results:
                if isinstance(result, StepResult):
                    progress.advance(result)
                else:
                    progress.restart()

    return show


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
        norms,
        integers("--micro-batch", sizes, 1),
        integers("--seeds", arguments.seeds, 0),
        varied,
        own_overrides(arguments.own, norms, keys),
        proxies_of(arguments.proxy, norms),
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


def proxies_of(text: Optional[str], norms: Sequence[str]) -> List[str]:
    """Return the kinds of ``--proxy``; an empty one if the option is not there.

    Raises:
        UserError: a kind is unknown, or none of the norms has Proxy Norm.
    """
    if text is None:
        return [""]
    kinds = words(text)
    for kind in kinds or [text]:
        if kind not in PROXIES:
            raise unknown_name("--proxy:", kind, list(PROXIES))
    if not any(parse_norm_spec(norm).proxy for norm in norms):
        raise UserError(
            f"--proxy {text}: none of --norms {','.join(norms)} has Proxy Norm; add one with +pn"
        )
    return kinds


def own_overrides(
    texts: Sequence[str], norms: Sequence[str], varied: Sequence[str]
) -> Dict[str, List[str]]:
    """Return the overrides of each norm alone, from ``NORM:KEY=VALUE``.

    Args:
        texts: as on the command line.
        norms: those that are compared.
        varied: keys that all of them vary.

    Raises:
        UserError: a text is not of that form, of no norm that is compared, or sets a key twice.
    """
    found: Dict[str, List[str]] = {}
    for text in texts:
        norm, _, override = text.partition(":")
        key, _, value = override.partition("=")
        if norm not in norms or not key or not value:
            raise UserError(
                f"--for {text!r}: expected NORM:KEY=VALUE with a norm of --norms "
                f"({','.join(norms)}), e.g. {norms[0]}:optimizer.lr=0.05"
            )
        if key in OWN:
            raise UserError(f"--for {text!r}: compare sets {key} itself; {OWN[key]}")
        before = found.setdefault(norm, [])
        if key in varied or key in [other.partition("=")[0] for other in before]:
            raise UserError(f"--for {text!r}: {key} is set twice; leave one of them out")
        before.append(override)
    return found


def out_folder(arguments: argparse.Namespace, base: RunConfig) -> Path:
    """Return the folder of rows, runs and report."""
    return Path(arguments.out or Path(base.runs, f"compare-{base.name}"))


def table(summaries: Sequence[Summary], sram: Sram) -> Table:
    """Return the comparison as a table of the terminal, no heading cut off."""
    columns, rows = without_variant(COLUMNS, table_rows(summaries, sram))
    result = Table()
    for column in columns:
        parts = column.replace("-", "- ").split()
        result.add_column(" ".join(parts), min_width=max(map(len, parts)), overflow="fold")
    for row in rows:
        result.add_row(*row)
    return result
