"""Give a training run every fault in every phase, and print what became of it, a row a cell.

    python benchmarks/faults/fault_table.py [--small] [--faults WORD ...] [--phases WORD ...]
        [--processes 1 2 4] [--workers 0 2] [--shuffle SEED] [--csv FILE]
        [--page docs/fault_table.md]

A cell is a fault, a phase, a number of processes (started as torchrun starts them) and of data
workers. Its row says the exit statuses, the one sentence that a person reads, whether the
checkpoints stand, whether ``--resume`` ends equal to a run never disturbed (weights, averages,
optimiser state, random streams, metrics, bit for bit), and how long the last process outlived the
first. The exit status is 1 where a cell is not as it should be: another status, no sentence or
several, a traceback, a checkpoint that cannot be read, another end, a process left behind.

With ``--csv`` the rows are kept, and those of cells run again replaced, so that the table can be
filled in pieces; ``--page`` makes a page of all that the file holds.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import csv
import dataclasses
import gc
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import (
    Any,
    Callable,
    Counter,
    Dict,
    Iterable,
    Iterator,
    List,
    Optional,
    Sequence,
    Set,
    Tuple,
)

import numpy as np

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as ipu_proxynorm.__main__ does

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import injected as do
from injected import BEFORE, CALL, CHECKPOINT, FIRST, LAST, PHASES, START, VALIDATION, Act, Place
from kill_resume import differing

from ipu_proxynorm.cli import main
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml"
#: 3 host calls of 32 images an epoch, 2 of 32 a validation, 4 replicas in 1, 2 or 4 processes.
OVERRIDES = [
    "name=run",
    "model.width=4",
    "data.name=image_folder",
    "data.image_size=16",
    "data.augment=crop",
    "ipu.splits=[]",
    "ipu.micro_batch_size=8",
    "ipu.replication_factor=4",
    "ipu.gradient_accumulation=1",
    "ipu.inference_device_iterations=1",
    f"training.epochs={do.EPOCHS}",
    "training.mixup_alpha=0.2",
    "training.checkpoint_every=1",
]
#: Seconds that a cell may take, and in which the others must end when one has.
CELL_SECONDS, OUTLIVING_SECONDS, PATIENCE_SECONDS = 120, 20, 8
IN_RUN = PHASES
WITH_WORKERS = (FIRST, CALL, VALIDATION, CHECKPOINT, LAST)
Statuses = Callable[[int, int], List[Set[int]]]


def all_end(*statuses: int) -> Statuses:
    """Return: every process ends with one of these statuses."""
    return lambda count, victim: [set(statuses)] * count


def killed(number: int) -> Statuses:
    """Return: one process dies of a signal, the others end with status 2."""

    def statuses(count: int, victim: int) -> List[Set[int]]:
        return [{-number} if rank == victim else {2} for rank in range(count)]

    return statuses


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault, and what must become of a run that is given it.

    Args:
        name: what a person calls it.
        act: gives it to a process.
        statuses: how the processes may end, of so many, when that one was given it.
        says: what the sentence must contain; "": none is asked for.
        phases: when it is given.
        whom: the processes that are given it: "first", "last" or "all".
        processes: the numbers of processes that it makes sense for.
        workers: the numbers of data workers.
        prepare: called in every process before the program begins.
        overrides: more of the command line.
        survivable: the run may also go on to its end, equal to one that was not disturbed.
        equal: whether what comes out in the end is that of a run not disturbed.
        mend: undoes the fault outside, before the run goes on.
        disk: the run has a small disk of its own.
        superuser: only they can inject it.
        each: every process says so, as none can reach the others.
    """

    name: str
    act: Act
    statuses: Statuses
    says: str = ""
    phases: Tuple[str, ...] = IN_RUN
    whom: str = "last"
    processes: Tuple[int, ...] = (1, 2, 4)
    workers: Tuple[int, ...] = (0, 2)
    prepare: Act = do.nothing
    overrides: Tuple[str, ...] = ()
    survivable: bool = False
    equal: bool = True
    mend: Act = do.nothing
    disk: bool = False
    superuser: bool = False
    each: bool = False


def _restore_rights(place: Place) -> None:
    for path in (place.runs, place.folder):
        if path.exists():
            path.chmod(0o755)


def _free_disk(place: Place) -> None:
    (place.runs / "ballast").unlink()


def _restore_images(place: Place) -> None:
    moved = place.images.with_name("moved")
    if moved.exists():
        moved.rename(place.images)


def _vacate(place: Place) -> None:
    for path in place.folder.glob("*"):
        if path.is_dir() and path.name != "tensorboard":
            shutil.rmtree(path)
        elif path.is_symlink():
            path.unlink()


def _lower_flag(place: Place) -> None:
    with contextlib.suppress(FileNotFoundError):
        do.flag(place).unlink()


STOP = "SIGSTOP of a process"
READER = "the reader of stdout leaves (| head)"
PORT = "the port is in use"
EARLY = "SIGKILL before the processes meet"
_STOPPING = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
FAULTS = (
    Fault("SIGKILL of the last process", do.send(9), killed(9), "has ended"),
    Fault("SIGKILL of the first process", do.send(9), killed(9), "has ended", whom="first",
          processes=(2, 4)),
    *(
        Fault(f"{name} to the last process", do.send_soon(number), all_end(_STOPPING[name]),
              "interrupted")
        for name, number in do.signals()
    ),
    Fault("SIGTERM to all processes", do.send_soon(signal.SIGTERM), all_end(143), "interrupted",
          whom="all", processes=(2, 4)),
    Fault(STOP, do.send(signal.SIGSTOP), all_end(2), "has not answered for long", workers=(0,),
          processes=(2, 4), overrides=(f"training.patience={PATIENCE_SECONDS}",)),
    Fault(READER, do.lose_reader, all_end(141), "interrupted", whom="first", survivable=True),
    Fault("stdout and stderr closed (>&- 2>&-)", do.close_streams, all_end(0), whom="all",
          phases=(BEFORE,)),
    Fault("the terminal is gone (SIGHUP ignored)", do.lose_reader, all_end(0), whom="first",
          prepare=do.print_to_terminal),
    Fault("disk full", lambda place: do.fill(place.runs), all_end(2), "No space left on device",
          whom="first", mend=_free_disk, disk=True, superuser=True),
    Fault("files limited to 32 KiB (quota)", do.limit_file_size, all_end(2), "File too large",
          whom="first", survivable=True),
    Fault("the disk reports errors", do.fail_disk, all_end(2), "Input/output error", whom="first"),
    Fault("run folder deleted", do.delete_run, all_end(2), "cannot be written", whom="first",
          survivable=True),
    Fault("file system read-only", do.mount_read_only, all_end(2), "Read-only file system",
          whom="first", prepare=do.own_mounts, superuser=True),
    Fault("no right to write to the run folder", do.forbid_writing, all_end(2),
          "Permission denied", whom="first", prepare=do.become_nobody, mend=_restore_rights,
          superuser=True),
    Fault("last.pt becomes a folder", do.occupy("last.pt", "folder"), all_end(2), "last.pt",
          whom="first", phases=(CALL, VALIDATION, CHECKPOINT, LAST), mend=_vacate, equal=True),
    Fault("metrics.jsonl becomes a folder", do.occupy("metrics.jsonl", "folder"), all_end(2),
          "metrics.jsonl", whom="first", phases=(CALL, VALIDATION, CHECKPOINT, LAST),
          mend=_vacate, equal=False),
    Fault("a dangling link beside the checkpoints", do.occupy("last-7.pt", "link"), all_end(0),
          whom="first", phases=(CALL, VALIDATION, CHECKPOINT, LAST)),
    Fault("descriptors exhausted", do.exhaust_files, all_end(2),
          "no more files can be opened|too many files are open|Too many open files",
          survivable=True),
    Fault("threads exhausted", do.exhaust_threads, all_end(2),
          "no more processes or threads can be started", survivable=True,
          prepare=do.become_nobody, superuser=True),
    Fault("/dev/shm exhausted", do.exhaust_shared_memory, all_end(2), "no space is left",
          survivable=True, prepare=do.small_shared_memory, superuser=True),
    Fault("address space exhausted", do.exhaust_memory, all_end(2),
          "memory does not suffice|memory that is free|can't start new thread", survivable=True),
    Fault("a data worker killed", do.signal_worker(9), all_end(2), "a worker process died",
          phases=WITH_WORKERS, workers=(2,), survivable=True),
    Fault("a data worker stopped", do.signal_worker(signal.SIGSTOP), all_end(2),
          "has given no images for", phases=WITH_WORKERS, workers=(2,), survivable=True,
          overrides=(f"training.patience={PATIENCE_SECONDS}",)),
    Fault("reading an image raises", do.raise_flag, all_end(2), "an image from another world",
          prepare=do.raise_when_flagged, mend=_lower_flag, survivable=True),
    Fault("an image damaged under way", do.damage_image, all_end(0), whom="first",
          prepare=do.keep_no_images, equal=False),
    Fault("the images vanish", do.delete_images, all_end(2), "data", whom="first",
          prepare=do.keep_no_images, mend=_restore_images, survivable=True),
    Fault("the clock goes back an hour", do.set_clock_back, all_end(0), whom="all"),
    Fault(PORT, do.nothing, all_end(2), "MASTER_PORT", phases=(BEFORE,), processes=(2, 4),
          each=True),
    Fault(EARLY, do.die_at_once, killed(9), "have not met there", phases=(BEFORE,),
          processes=(2, 4), overrides=(f"training.patience={PATIENCE_SECONDS}",)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """A fault in a phase, with so many processes, each with so many data workers."""

    fault: Fault
    phase: str
    processes: int
    workers: int

    @property
    def victims(self) -> List[int]:
        """The processes that are given the fault."""
        every = list(range(self.processes))
        return {"first": every[:1], "last": every[-1:], "all": every}[self.fault.whom]


@dataclasses.dataclass
class Row:
    """What became of a cell."""

    fault: str
    phase: str
    processes: int
    workers: int
    statuses: str
    sentence: str
    checkpoint: str
    resume: str
    outlived: float
    wrong: str

    @property
    def key(self) -> Tuple[str, ...]:
        """What names the cell."""
        return self.fault, self.phase, str(self.processes), str(self.workers)


class InChild(BaseException):
    """Leaves all that the harness was about, in a child: what follows is an ordinary program."""

    def __init__(self, words: List[str]) -> None:
        super().__init__()
        self.words = words


class Started:
    """The command in processes of its own, each a session, as torchrun starts them.

    Args:
        words: the command line.
        folder: where each process's output goes.
        count: how many processes.
        cell: the fault that they are given; None: none.
        place: where they work.
    """

    def __init__(
        self, words: List[str], folder: Path, count: int, cell: Optional[Cell], place: Place
    ) -> None:
        self.folder, self.cell = folder, cell
        self.ended: Dict[int, Tuple[int, float]] = {}
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.occupied: Optional[socket.socket] = None
        if cell is not None and cell.fault.name == PORT:
            self.occupied = socket.socket()
            self.occupied.bind(("127.0.0.1", port))
            self.occupied.listen()
        pipe = os.pipe() if cell is not None and cell.fault.name == READER else None
        self.pids = [
            self._fork(words, rank, count, port, dataclasses.replace(place, rank=rank), pipe)
            for rank in range(count)
        ]
        for number in pipe or ():
            os.close(number)

    def _fork(
        self,
        words: List[str],
        rank: int,
        count: int,
        port: int,
        place: Place,
        pipe: Optional[Tuple[int, int]],
    ) -> int:
        child = os.fork()
        if child:
            return child
        os.setsid()
        if self.occupied is not None:
            self.occupied.close()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update({**shared, "RANK": str(rank)} if count > 1 else {})
        with open(self.folder / f"out{rank}", "wb") as out:
            do.print_to(out.fileno(), 1)
        with open(self.folder / f"err{rank}", "wb") as errors:
            do.print_to(errors.fileno(), 2)
        if pipe is not None and rank:
            for number in pipe:
                os.close(number)
        elif pipe is not None:
            do.print_to(pipe[1], 1)
            os.close(pipe[1])
            place.reader = pipe[0]
            os.register_at_fork(after_in_child=lambda: os.close(place.reader))
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        if self.cell is not None:
            self.cell.fault.prepare(place)
            self._arrange(self.cell, place)
        sys.argv[0] = "ipu-proxynorm"
        raise InChild(words)

    @staticmethod
    def _arrange(cell: Cell, place: Place) -> None:
        if place.rank not in cell.victims:
            return
        if cell.phase == BEFORE:
            cell.fault.act(place)
        else:
            do.arrange(cell.phase, lambda: cell.fault.act(place), place.rank == 0)

    def end(self, seconds: float = CELL_SECONDS) -> bool:
        """Wait until all have ended; tell whether they did so in time, by themselves."""
        stopped = self.cell is not None and self.cell.fault.name == STOP
        began = time.monotonic()
        while len(self.ended) < len(self.pids):
            for pid in self.pids:
                if pid in self.ended:
                    continue
                found, status = os.waitpid(pid, os.WNOHANG)
                if found:
                    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
                    self.ended[pid] = code, time.monotonic()
            if stopped and len(self.ended) == len(self.pids) - 1:
                os.kill(self.pids[-1], signal.SIGCONT)
            if time.monotonic() - began > seconds:
                for pid in set(self.pids) - self.ended.keys():
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    self.ended[pid] = -signal.SIGKILL, time.monotonic()
                return False
            time.sleep(0.01)
        if self.occupied is not None:
            self.occupied.close()
        return True

    @property
    def statuses(self) -> List[int]:
        """The exit status of each process, minus a signal's number where it died of one."""
        return [self.ended[pid][0] for pid in self.pids]

    @property
    def outlived(self) -> float:
        """Seconds between the first end and the last."""
        times = [when for _, when in self.ended.values()]
        return max(times) - min(times)

    def left_behind(self, seconds: float = 10) -> List[int]:
        """Return which processes of these sessions are still there after so long; end them."""
        sessions, began = set(self.pids), time.monotonic()
        while True:
            left = [pid for pid, session in sessions_of_processes() if session in sessions]
            if not left:
                return []
            if time.monotonic() - began > seconds:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                return left
            time.sleep(0.05)

    def printed(self, name: str) -> List[str]:
        """Return the lines of all processes on ``out`` or ``err``."""
        found = []
        for rank in range(len(self.pids)):
            text = (self.folder / f"{name}{rank}").read_text(errors="replace")
            found += [line for line in text.splitlines() if line.strip()]
        return found


def sessions_of_processes() -> Iterator[Tuple[int, int]]:
    """Yield the id of each process that lives here, and its session."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if state not in "ZX":
                yield int(path.parent.name), int(session)


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
            do._mount("tmpfs", folder / "runs", "tmpfs", 0, "size=4m")
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

    @staticmethod
    def _words(place: Place, workers: int, overrides: Sequence[str]) -> List[str]:
        mine = [f"runs={place.runs}", f"data.path={place.images}", f"data.workers={workers}"]
        return ["train", str(CONFIG), *OVERRIDES, *mine, *overrides]

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
            re.sub(" +", " ", sentence.replace(str(place.runs.parent), "...")),
            stands,
            resume,
            round(started.outlived, 1),
            "; ".join(wrong).replace(str(place.runs.parent), "..."),
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
        if fault.name == STOP and len(printed) == 2:
            printed.pop()  # of the stopped one, let go on when the others have ended
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


def _beside(line: str) -> bool:
    """Tell whether a line is beside the sentence: a warning, or that a signal is heeded."""
    return ": warning: " in line or "stopping after this host call" in line


def cells(
    faults: Sequence[str], phases: Sequence[str], processes: Sequence[int], workers: Sequence[int]
) -> List[Cell]:
    """Return the cells of these faults (by words in their names), phases and numbers."""

    def named(name: str, words: Sequence[str]) -> bool:
        return not words or any(word in name for word in words)

    return [
        Cell(fault, phase, count, number)
        for fault in FAULTS
        if named(fault.name, faults)
        for phase in fault.phases
        if named(phase, phases)
        for count in fault.processes
        if count in processes
        for number in fault.workers
        if number in workers
    ]


#: Cells of the small form: kinds of fault over the phases, in one process and in two.
SMALL: Tuple[Tuple[str, str, int, int], ...] = (
    ("SIGHUP to the last process", VALIDATION, 2, 2),
    ("SIGKILL of the first process", CHECKPOINT, 2, 0),
    ("address space exhausted", START, 2, 0),
    ("reading an image raises", CALL, 2, 2),
    (READER, CALL, 1, 2),
    ("descriptors exhausted", FIRST, 1, 2),
    ("run folder deleted", LAST, 1, 0),
    ("a data worker killed", CHECKPOINT, 1, 2),
)


def small() -> List[Cell]:
    """Return the cells of the small form."""
    every = {
        (cell.fault.name, cell.phase, cell.processes, cell.workers): cell
        for cell in cells((), (), (1, 2, 4), (0, 2))
    }
    return [every[name] for name in SMALL]


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
    parser.add_argument("--page", type=Path, help="write what the kept rows say, as Markdown")
    parser.add_argument("--keep", action="store_true", help="keep the folders of cells gone wrong")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()  # no child looks through, and so copies, what it has from here
    chosen = (
        small()
        if arguments.small
        else cells(arguments.faults, arguments.phases, arguments.processes, arguments.workers)
    )
    if arguments.shuffle is not None:
        random.Random(arguments.shuffle).shuffle(chosen)
    if arguments.page and arguments.csv:
        arguments.page.write_text(page(list(kept(arguments.csv).values())))
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


def keep(path: Path, rows: Iterable[Row]) -> None:
    """Write rows as CSV."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def kept(path: Optional[Path]) -> Dict[Tuple[str, ...], Row]:
    """Return the rows of a file, if there is one, by what names their cells."""
    if path is None or not path.exists():
        return {}
    with path.open(newline="") as stream:
        rows = [Row(**values) for values in csv.DictReader(stream)]  # type: ignore[arg-type]
    return {row.key: row for row in rows}


def page(rows: Sequence[Row]) -> str:
    """Return a page of Markdown: faults by phases, and what is said."""
    by_fault: Dict[str, List[Row]] = {}
    for row in rows:
        by_fault.setdefault(row.fault, []).append(row)
    phases = [phase for phase in (BEFORE, *PHASES) if any(row.phase == phase for row in rows)]
    right = sum(not row.wrong for row in rows)
    lines = [
        "# Faults, as injected",
        "",
        "Made by `python benchmarks/faults/fault_table.py --csv docs/fault_table.csv` and then "
        "`--page docs/fault_table.md`; its first lines say what a cell is and what is asked of "
        "it. Under each phase: cells as they should be, of how many (numbers of processes and of "
        "data workers). All rows are in [fault_table.csv](fault_table.csv).",
        "",
        f"**{right} of {len(rows)} cells are as they should be.**",
        "",
        f"| fault | {' | '.join(phases)} | statuses | what is said |",
        f"|---|{'---|' * len(phases)}---|---|",
    ]
    for name, some in by_fault.items():
        counts = [_count([row for row in some if row.phase == phase]) for phase in phases]
        statuses = sorted({word for row in some for word in row.statuses.split()}, key=int)
        sentence = max((row.sentence for row in some), key=len)
        lines.append(
            f"| {_cell(name)} | {' | '.join(counts)} | {', '.join(statuses)} "
            f"| {_cell(f'`{sentence}`') if sentence else ''} |"
        )
    wrong = [row for row in rows if row.wrong]
    if wrong:
        lines += ["", "Not as they should be:", ""]
    lines += [
        f"- {row.fault}, {row.phase}, {row.processes} processes, {row.workers} workers: {row.wrong}"
        for row in wrong
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _count(rows: Sequence[Row]) -> str:
    return f"{sum(not row.wrong for row in rows)}/{len(rows)}" if rows else "–"


if __name__ == "__main__":
    try:
        sys.exit(main_of_table())
    except InChild as child:
        ours = child.words
    sys.exit(main(ours))
