"""The phases of a run in which a process is given a fault, and how it is given exactly there.

A function of the program that is called in the phase is wrapped, and the wrapper acts before it
calls. Nothing waits, so a cell of the table takes as long as its run.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable, List

from ipu_proxynorm.files import checkpoint
from ipu_proxynorm.run import meeting, processes
from ipu_proxynorm.training import loop, resume, validation
from ipu_proxynorm.training.executor import TrainingExecutor

START, FIRST, CALL = "at the start", "before the first call", "in a call"
VALIDATION, CHECKPOINT, LAST = "in validation", "in a checkpoint write", "in the last epoch"
PHASES = (START, FIRST, CALL, VALIDATION, CHECKPOINT, LAST)
#: Before the program begins, in every process.
BEFORE = "before it starts"
#: While the processes meet: their store is there, gloo is not yet.
MEETING = "while they meet"
#: Host calls an epoch of the runs that are disturbed, and epochs.
CALLS, EPOCHS = 3, 2


@dataclasses.dataclass
class Place:
    """Where a process of a run works.

    Args:
        runs: the folder that holds the run's.
        images: the data set's.
        rank: which of the processes this is.
        reader: the descriptor by which what the first one prints is read, in its own hands.
    """

    runs: Path
    images: Path
    rank: int
    reader: int = -1

    @property
    def folder(self) -> Path:
        """The run's own."""
        return self.runs / "run"


Act = Callable[[Place], None]


def before(owner: Any, name: str, act: Callable[[], None], when: Callable[..., bool]) -> None:
    """Wrap a function: ``act`` is called once, before the first call for which ``when`` holds."""
    inner, done = getattr(owner, name), []

    def wrapper(*arguments: Any, **named: Any) -> Any:
        if not done and when(*arguments):
            done.append(True)
            act()
        return inner(*arguments, **named)

    setattr(owner, name, wrapper)


def counting(number: int) -> Callable[..., bool]:
    """Return what holds for the call of that number, from 1."""
    calls: List[None] = []

    def reached(*arguments: Any) -> bool:
        calls.append(None)
        return len(calls) == number

    return reached


def arrange(phase: str, act: Callable[[], None], first: bool) -> None:
    """Have ``act`` called when the run of this process reaches a phase.

    Args:
        phase: one of `PHASES`, or `MEETING`.
        act: the fault.
        first: whether this is the process that writes.
    """
    if phase == MEETING:
        before(meeting, "_join", act, counting(1))
    elif phase == START:
        before(resume, "build", act, counting(1))
    elif phase == FIRST:
        before(TrainingExecutor, "compile", act, counting(1))
    elif phase == CALL:  # the second: a checkpoint is there
        before(TrainingExecutor, "__call__", act, counting(2))
    elif phase == LAST:
        before(TrainingExecutor, "__call__", act, counting((EPOCHS - 1) * CALLS + 2))
    elif phase == VALIDATION:
        _in_validation(act)
    else:
        _in_checkpoint(act, first)


def _in_validation(act: Callable[[], None]) -> None:
    """Act before the second batch of the first validation."""
    inner, reached = validation.watched, counting(1)

    def watched(*arguments: Any) -> Any:
        mine = reached()
        for number, batch in enumerate(inner(*arguments)):
            if mine and number == 1:
                act()
            yield batch

    validation.watched = watched


def _in_checkpoint(act: Callable[[], None], first: bool) -> None:
    """Act in the second checkpoint: when half of the file is written, or while others write it."""
    saves: List[None] = []
    inner = loop.Trainer.save

    def save(*arguments: Any, **named: Any) -> None:
        saves.append(None)
        inner(*arguments, **named)

    loop.Trainer.save = save  # type: ignore[method-assign]
    if first:
        before(
            checkpoint,
            "seal",
            act,
            lambda stream: len(saves) == 2 and Path(stream.name).name == ".last.pt.part",
        )
    else:
        # What comes after the streams of random numbers are gathered: the first process writes.
        gathered: List[None] = []
        gather = processes.Processes.gather

        def noting(*arguments: Any) -> Any:
            gathered.extend([None] * (len(saves) == 2))
            return gather(*arguments)

        processes.Processes.gather = noting  # type: ignore[method-assign]
        before(processes.Processes, "largest", act, lambda *_: bool(gathered))
