"""Give a training run every fault in every phase, and print what became of it, a row a cell.

    python benchmarks/faults/fault_table.py [--small] [--faults WORD ...] [--phases WORD ...]
        [--processes 1 2 4] [--workers 0 2] [--shuffle SEED] [--csv FILE]
        [--missing] [--page docs/fault_table.md]

A cell is a fault, a phase, a number of processes (started as torchrun starts them) and of data
workers. Its row says the exit statuses, the one sentence that a person reads, whether the
checkpoints stand, whether ``--resume`` ends equal to a run never disturbed (weights, averages,
optimiser state, random streams, metrics, bit for bit), and how long the last process outlived the
first. The exit status is 1 where a cell is not as it should be: another status, no sentence or
several, a traceback, a checkpoint that cannot be read, another end, a process left behind.

With ``--csv`` the rows are kept, and those of cells run again replaced, so that the table can be
filled in pieces: ``--missing`` leaves out the cells that are kept already. ``--page`` makes a page
of all that the file holds.
"""

from __future__ import annotations

import argparse
import collections
import gc
import importlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import (
    Any,
    Counter,
    Dict,
    List,
    Optional,
    Sequence,
)

import numpy as np

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as ipu_proxynorm.__main__ does

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import injected as do
from fault_list import STOPS, Cell, Fault, cells, small
from fault_processes import InChild, Started
from fault_rows import Row, keep, kept, page
from kill_resume import differing
from phases import EPOCHS, Place

from ipu_proxynorm.__main__ import run
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.models.factory import MODELS, Architecture
from ipu_proxynorm.models.resnetv2 import PreActBasicBlock, ResNetV2

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
#: 3 host calls of 32 images an epoch, 2 of 32 a validation, 4 replicas in 1, 2 or 4 processes.
KEYS = f"""\
defaults: [{CONFIG}]
name: run
model:
  name: one_block
  width: 24
data:
  name: image_folder
  image_size: 16
  augment: crop
ipu:
  splits: []
  micro_batch_size: 8
  replication_factor: 4
  gradient_accumulation: 1
  inference_device_iterations: 1
training:
  epochs: {EPOCHS}
  mixup_alpha: 0.2
  checkpoint_every: 1
"""
#: The least of a network: what compiles it is most of what a cell computes.
ONE_BLOCK = Architecture(
    ResNetV2, {"block": PreActBasicBlock, "depths": [1], "width": 24}, 16, 1, ("width",)
)
#: Seconds in which the others must end when one has.
OUTLIVING_SECONDS = 20


def metrics(folder: Path) -> List[Dict[str, Any]]:
    """Return what a run has logged, speeds aside."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    return [{**line, "images_per_second": 0} for line in lines]


class Table:
    """Runs cells in folders of their own.

    Args:
        base: a folder for all of it.
    """

    def __init__(self, base: Path) -> None:
        self.base, self._count = base, 0
        self._references: Dict[int, Path] = {}
        self._config = base / "config.yaml"
        self._config.write_text(KEYS)
        self.mounts = do.may_mount()
        if self.mounts:
            do.own_mounts(Place(base, base, 0))
        generator = np.random.default_rng(0)
        for part, count in (("train", 96), ("val", 64)):
            for number in range(count):
                folder = base / "images" / part / f"class{number % 4}"
                folder.mkdir(parents=True, exist_ok=True)
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")

    def _place(self, fault: Optional[Fault]) -> Place:
        self._count += 1
        folder = self.base / str(self._count)
        (folder / "runs").mkdir(parents=True)
        if fault is not None and fault.disk:
            do._mount("tmpfs", folder / "runs", "tmpfs", 0, "size=4m,nr_inodes=200")
        shutil.copytree(self.base / "images", folder / "images")
        if fault is not None and fault.superuser:
            os.chown(folder / "runs", do.NOBODY, do.NOBODY)
        return Place(folder / "runs", folder / "images", 0)

    def reference(self, processes: int) -> Path:
        """Return the folder of a run of so many processes that nobody disturbs, made once."""
        if processes not in self._references:
            place = self._place(None)
            words = self._words(place, 0, ())
            started = Started(words, place.runs.parent, processes, None, place)
            if not started.end() or any(started.statuses):
                raise SystemExit(f"a run itself fails: {started.printed('err')}")
            self._references[processes] = place.folder
        return self._references[processes]

    def _words(self, place: Place, workers: int, overrides: Sequence[str]) -> List[str]:
        mine = [f"runs={place.runs}", f"data.path={place.images}", f"data.workers={workers}"]
        return ["train", str(self._config), *mine, *overrides]

    def row(self, cell: Cell) -> Row:
        """Give a run a fault; look at what it says and leaves, and let it go on."""
        fault = cell.fault
        reference = self.reference(cell.processes)
        place = self._place(fault)
        words = self._words(place, cell.workers, fault.overrides)
        started = Started(words, place.runs.parent, cell.processes, cell, place)
        wrong = [] if started.end() else ["does not end"]
        left = started.left_behind()
        wrong += [f"{len(left)} processes left behind"] if left else []
        if started.outlived > OUTLIVING_SECONDS:
            wrong.append(f"outlives the others by {started.outlived:.0f} s")
        sentence = self._judge(cell, started, wrong)
        stands = self._checkpoints(place, wrong, fault)
        fault.mend(place)
        resume = self._resume(cell, place, started, reference, wrong)
        if fault.disk:
            do._LIBC.umount(str(place.runs).encode())
        if not wrong:
            shutil.rmtree(place.runs.parent)
        return Row(
            fault.name,
            cell.phase,
            cell.processes,
            cell.workers,
            " ".join(map(str, started.statuses)),
            re.sub(" +", " ", _shortened(sentence, place)),
            stands,
            resume,
            round(started.outlived, 1),
            _shortened("; ".join(wrong), place),
        )

    def _judge(self, cell: Cell, started: Started, wrong: List[str]) -> str:
        """Return the sentence; add to ``wrong`` what is wrong with statuses and words."""
        fault, statuses = cell.fault, started.statuses
        printed = [line for line in started.printed("err") if not _beside(line)]
        if any("Traceback" in line for line in printed + started.printed("out")):
            wrong.append("a traceback")
        ended_well = not any(statuses)
        expected = fault.statuses(cell.processes, cell.victims[0])
        as_expected = all(status in some for status, some in zip(statuses, expected))
        if not as_expected and not (fault.survivable and ended_well):
            wrong.append(f"statuses {statuses}")
        silent = ended_well or all(status < 0 for status in statuses)
        if silent and printed == ["ipu-proxynorm: interrupted"]:
            printed.pop()  # and the second signal came before the end
        if fault.name in STOPS and len(printed) == 2:
            # The other is of the stopped one, let go on when the others have ended.
            printed = [line for line in printed if fault.says in line]
        if len(printed) != (0 if silent else cell.processes if fault.each else 1):
            wrong.append(f"{len(printed)} lines: {' | '.join(line[:150] for line in printed[:6])}")
        said = "\n".join(printed)
        if not silent and not any(words in said for words in fault.says.split("|")):
            wrong.append(f"does not say {fault.says!r}")
        return printed[0] if printed else ""

    @staticmethod
    def _checkpoints(place: Place, wrong: List[str], fault: Fault) -> str:
        """Say which checkpoints are there; those that are must be whole."""
        good = 0
        for path in sorted(place.folder.glob("*.pt")):
            if not path.is_file():
                continue
            try:
                load_checkpoint(path)
                good += 1
            except UserError as error:
                wrong.append(f"checkpoint: {str(error)[:120]}")
        return f"{good} stand" if good else "none yet"

    def _resume(
        self, cell: Cell, place: Place, started: Started, reference: Path, wrong: List[str]
    ) -> str:
        """Let the run go on where it has not ended; compare what comes out; say how it went."""
        how = "ended" if not any(started.statuses) else "resumed"
        if how == "resumed":
            words = [*self._words(place, cell.workers, ()), "--resume"]
            name = ["--checkpoint", "last-1"] if not (place.folder / "last.pt").exists() else []
            found = (place.folder / "last-1.pt").exists()
            printed = place.runs.parent / "resumed"
            printed.mkdir()
            again = Started(words + (name if found else []), printed, cell.processes, None, place)
            if not again.end() or any(again.statuses):
                said = again.printed("err")[-1:]
                finished = any("has finished its" in line for line in again.printed("err"))
                if not finished:
                    wrong.append(f"--resume: statuses {again.statuses} {said}")
                    return "refused"
        try:
            one, other = (load_checkpoint(path / "last.pt") for path in (reference, place.folder))
        except UserError as error:
            wrong.append(str(error))
            return "no end"
        if not cell.fault.equal:
            return how
        different = differing(one, other)
        if one.state and other.state and one.state.progress != other.state.progress:
            different.append("progress")
        if metrics(reference) != metrics(place.folder):
            different.append("metrics")
        if different:
            wrong.append(f"{len(different)} differ: {different[:3]}")
        return f"{how}, {'differs' if different else 'equal'}"


def _shortened(text: str, place: Place) -> str:
    """Return a text without the folders of the cell and of the checkout: they differ everywhere."""
    for folder in (place.runs.parent, Path(__file__).resolve().parents[2]):
        text = text.replace(str(folder), "...")
    return text


def _beside(line: str) -> bool:
    """Tell whether a line is beside the sentence: a warning, or that a signal is heeded."""
    return ": warning: " in line or "stopping after this host call" in line


def main_of_table() -> int:
    """Parse, run the cells, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--small", action="store_true", help="the cells that CI runs")
    parser.add_argument("--faults", nargs="*", default=[], help="words in their names")
    parser.add_argument("--phases", nargs="*", default=[], help="words in their names")
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2, 4])
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--shuffle", type=int, metavar="SEED", help="in another order")
    parser.add_argument("--csv", type=Path, help="keep the rows there")
    parser.add_argument("--missing", action="store_true", help="only cells that are not kept there")
    parser.add_argument("--page", type=Path, help="write what the kept rows say, as Markdown")
    parser.add_argument("--keep", action="store_true", help="keep the folders of cells gone wrong")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    MODELS["one_block"] = ONE_BLOCK
    if hasattr(torch, "_disable_dynamo"):
        importlib.import_module("torch._dynamo")  # an optimiser does: once, not in each child
    gc.freeze()  # no child looks through, and so copies, what it has from here
    chosen = (
        small()
        if arguments.small
        else cells(arguments.faults, arguments.phases, arguments.processes, arguments.workers)
    )
    if arguments.missing:
        there = kept(arguments.csv)
        chosen = [cell for cell in chosen if cell.key not in there]
    if arguments.shuffle is not None:
        random.Random(arguments.shuffle).shuffle(chosen)
    if arguments.page and arguments.csv:
        arguments.page.write_text(
            page(list(kept(arguments.csv).values()), len(cells((), (), (1, 2, 4), (0, 2))))
        )
        return 0
    base = Path(tempfile.mkdtemp(prefix="faults"))
    bad = run_cells(Table(base), chosen, arguments.csv)
    if not arguments.keep:
        shutil.rmtree(base, ignore_errors=True)
    return 1 if bad else 0


def run_cells(table: Table, chosen: Sequence[Cell], path: Optional[Path]) -> int:
    """Run cells, printing and keeping each row as it comes; return how many are wrong."""
    rows = kept(path)
    skipped: Counter[str] = collections.Counter()
    bad = done = 0
    for cell in chosen:
        if cell.fault.superuser and not table.mounts:
            skipped[cell.fault.name] += 1
            continue
        row = table.row(cell)
        rows[row.key] = row
        bad, done = bad + bool(row.wrong), done + 1
        if path is not None:
            keep(path, rows.values())
        print(
            f"{row.fault}; {row.phase}; {row.processes} processes, {row.workers} workers; "
            f"{row.statuses}; {row.sentence}; {row.checkpoint}; {row.resume}; {row.outlived} s; "
            + (f"WRONG: {row.wrong}" if row.wrong else "ok"),
            flush=True,
        )
    for name, number in skipped.items():
        print(f"{name}: {number} cells left out: only the superuser can inject it")
    print(f"{done} cells, {bad} not as they should be")
    return bad


if __name__ == "__main__":
    try:
        sys.exit(main_of_table())
    except InChild as child:
        sys.argv[1:] = child.words
    sys.exit(run())
