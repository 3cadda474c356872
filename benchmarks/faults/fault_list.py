"""The faults that `fault_table.py` injects, and what must become of a run that is given one."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import signal
from typing import (
    Callable,
    List,
    Sequence,
    Set,
    Tuple,
)

import injected as do
from phases import (
    BEFORE,
    CALL,
    CHECKPOINT,
    FIRST,
    LAST,
    MEETING,
    PHASES,
    START,
    VALIDATION,
    Act,
    Place,
)

#: How long processes of a cell have patience with each other where it is waited for, seconds.
PATIENCE_SECONDS = 16
#: Likewise with data workers, which have three quarters of it.
WORKERS_PATIENCE_SECONDS = 40
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


def ended_or_killed(number: int) -> Statuses:
    """Return: all end by a signal in order, or one dies of it and the others with status 2."""

    def statuses(count: int, victim: int) -> List[Set[int]]:
        of_victim, of_others = {128 + number, -number}, {128 + number, 2}
        return [of_victim if rank == victim else of_others for rank in range(count)]

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
    for path in place.runs.glob("ballast*"):
        path.unlink()


def _restore_images(place: Place) -> None:
    moved = place.images.with_name("moved")
    if moved.exists():
        shutil.rmtree(place.images, ignore_errors=True)
        moved.rename(place.images)


def _rename_back(place: Place) -> None:
    place.folder.with_name("renamed").rename(place.folder)


def _vacate(place: Place) -> None:
    for path in (*place.folder.glob("*"), *place.folder.glob("tensorboard/*")):
        if path.is_dir() and path.name != "tensorboard":
            shutil.rmtree(path)
        elif path.is_symlink() or path.is_fifo():
            path.unlink()


def _lower_flag(place: Place) -> None:
    with contextlib.suppress(FileNotFoundError):
        do.flag(place).unlink()


#: Let go on when the others have ended.
STOPS = ("SIGSTOP of a process", "SIGSTOP of the first process")
READER = "the reader of stdout leaves (| head)"
PORT = "the port is in use"
EARLY = "SIGKILL before the processes meet"
FAULTS = (
    Fault("SIGKILL of the last process", do.send(9), killed(9), "has ended"),
    Fault("SIGKILL of the first process", do.send(9), killed(9), "has ended", whom="first",
          processes=(2, 4)),
    Fault("SIGSEGV of the last process", do.send(signal.SIGSEGV), killed(signal.SIGSEGV),
          "has ended", phases=(CALL,)),
    *(
        Fault(f"{name} while they meet", do.send(number), ended_or_killed(number), says,
              phases=(MEETING,), processes=(2, 4), workers=(0,), whom=whom,
              overrides=(f"training.patience={PATIENCE_SECONDS}",))
        for name, number, whom, says in (
            ("SIGKILL of the last process", 9, "last", "has ended"),
            ("SIGKILL of the first process", 9, "first", "not met there"),
            ("SIGTERM to the last process", 15, "last", "has ended"),
            ("SIGTERM to the first process", 15, "first", "interrupted|not met there"),
        )
    ),
    *(
        Fault(f"{name} to the last process", do.send_soon(number), all_end(128 + number),
              "interrupted")
        for name, number in do.signals()
    ),
    Fault("SIGTERM twice to the last process", do.send_twice(signal.SIGTERM),
          ended_or_killed(signal.SIGTERM), "interrupted|has ended"),
    Fault("SIGTERM to all processes", do.send_soon(signal.SIGTERM), all_end(143), "interrupted",
          whom="all", processes=(2, 4)),
    *(Fault(name, do.send(signal.SIGSTOP), all_end(2), "has not answered for long", whom=whom,
            workers=(0,), processes=(2, 4), overrides=(f"training.patience={PATIENCE_SECONDS}",))
      for name, whom in zip(STOPS, ("last", "first"))),
    Fault("SIGSTOP for two seconds", do.stop_for_a_while, all_end(0), phases=(CALL, VALIDATION)),
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
    Fault("metrics.jsonl becomes a pipe", do.replace_by_pipes("metrics.jsonl"), all_end(2),
          "metrics.jsonl", whom="first", phases=(CALL, VALIDATION, CHECKPOINT, LAST),
          processes=(1, 2), workers=(0,), mend=_vacate, equal=False),
    Fault("TensorBoard's file becomes a pipe", do.replace_by_pipes("tensorboard/*"), all_end(2),
          "tensorboard", whom="first", phases=(CALL, VALIDATION, CHECKPOINT, LAST),
          processes=(1, 2), workers=(0,), mend=_vacate),
    Fault("run folder renamed", do.rename_run, all_end(2), "cannot be", whom="first",
          phases=(CALL, VALIDATION, CHECKPOINT, LAST), processes=(1, 2), workers=(0,),
          mend=_rename_back),
    Fault("metrics and TensorBoard's folder deleted", do.delete_records, all_end(0), whom="first",
          phases=(CALL, VALIDATION, CHECKPOINT, LAST), equal=False),
    Fault("no locks and no hard links", do.nothing, all_end(0), phases=(BEFORE,),
          prepare=do.forbid_locks_and_links),
    Fault("no more inodes", do.use_no_more_inodes, all_end(2), "No space left on device",
          whom="first", mend=_free_disk, disk=True, superuser=True, phases=(FIRST, CHECKPOINT),
          workers=(0,)),
    Fault("the folder for temporary files deleted", do.take_temporary_folder, all_end(2), "TMPDIR",
          phases=(START, CALL, VALIDATION), workers=(2,), survivable=True,
          prepare=do.own_temporary_folder),
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
          "memory does not suffice|memory that is free|no address space", survivable=True),
    Fault("a data worker killed", do.signal_worker(9), all_end(2), "a worker process died",
          phases=WITH_WORKERS, workers=(2,), survivable=True),
    Fault("a data worker stopped", do.signal_worker(signal.SIGSTOP), all_end(2),
          "has given no images for", phases=WITH_WORKERS, workers=(2,), survivable=True,
          overrides=(f"training.patience={WORKERS_PATIENCE_SECONDS}",)),
    Fault("reading an image raises", do.raise_flag, all_end(2), "an image from another world",
          prepare=do.raise_when_flagged, mend=_lower_flag, survivable=True),
    Fault("an image damaged under way", do.damage_image, all_end(0), whom="first",
          prepare=do.keep_no_images, equal=False),
    Fault("the images vanish", do.delete_images, all_end(2), "data", whom="first",
          prepare=do.keep_no_images, mend=_restore_images, survivable=True),
    Fault("the images become pipes", do.replace_images_by_pipes, all_end(2), "data",
          whom="first", prepare=do.keep_no_images, mend=_restore_images, survivable=True,
          phases=(CALL, VALIDATION, LAST), processes=(1, 2)),
    Fault("the clock goes back an hour", do.set_clock_back, all_end(0), whom="all"),
    Fault("the clock goes ahead ten years", do.set_clock_ahead, all_end(0), whom="all",
          phases=(CALL,)),
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
    def key(self) -> Tuple[str, ...]:
        """What names the cell, as its row."""
        return self.fault.name, self.phase, str(self.processes), str(self.workers)

    @property
    def victims(self) -> List[int]:
        """The processes that are given the fault."""
        every = list(range(self.processes))
        return {"first": every[:1], "last": every[-1:], "all": every}[self.fault.whom]


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


#: Cells of the small form: kinds of fault over the phases, in one process and in two. At the start,
#: where address space is exhausted, Python 3.8 itself aborts now and then (docs/training.md).
SMALL: Tuple[Tuple[str, str, int, int], ...] = (
    ("SIGHUP to the last process", VALIDATION, 2, 2),
    ("SIGKILL of the first process", CHECKPOINT, 2, 0),
    ("address space exhausted", CALL, 2, 0),
    ("reading an image raises", CALL, 2, 2),
    (READER, CALL, 1, 2),
    ("descriptors exhausted", FIRST, 1, 2),
    ("run folder deleted", LAST, 1, 0),
    ("a data worker killed", CHECKPOINT, 1, 2),
)


def small() -> List[Cell]:
    """Return the cells of the small form."""
    every = {cell.key: cell for cell in cells((), (), (1, 2, 4), (0, 2))}
    return [every[name, phase, str(count), str(workers)] for name, phase, count, workers in SMALL]
