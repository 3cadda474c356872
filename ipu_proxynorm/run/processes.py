"""What the processes of a run tell each other on the host: figures, failures, and when to stop.

The IPUs, or the simulator, add up gradients by themselves. All else goes through
``torch.distributed`` with gloo, beside the launcher: under torchrun, which says where the
processes meet, and under poprun alike, where ``MASTER_ADDR`` says it (default: this machine).
"""

from __future__ import annotations

import contextlib
import functools
import re
from typing import Any, Iterator, List, Optional, Protocol, Sequence, TypeVar, Union

import torch
import torch.distributed as dist

from ipu_proxynorm.errors import Shared, UserError
from ipu_proxynorm.exhausted import exhausted
from ipu_proxynorm.ipu import ALONE, Instance
from ipu_proxynorm.run.attendance import ROLL_CALL_SECONDS, Attendance, Word
from ipu_proxynorm.run.interruption import Interrupted

Value = TypeVar("Value")
Failure = TypeVar("Failure", bound=Shared)

#: How long one may be busy on its own, e.g. compiling, while another waits: ``training.patience``.
PATIENCE_SECONDS = 600.0


class Ordered(Protocol):
    """What can be sorted."""

    def __lt__(self, other: Any, /) -> bool:
        """Tell whether it comes before another."""


Sortable = TypeVar("Sortable", bound=Ordered)


class ProcessLost(UserError):
    """Another process of the run has ended, or cannot be reached.

    Args:
        message: what a person reads.
        quiet: another process prints it.
    """

    def __init__(self, message: str, quiet: bool = False) -> None:
        super().__init__(message)
        self.quiet = quiet


class Processes:
    """The processes of a run, all of which make the same calls in the same order.

    Args:
        instance: which of them this is.
        attendance: which of them are there; None: nobody asks.
    """

    def __init__(self, instance: Instance = ALONE, attendance: Optional[Attendance] = None) -> None:
        self.instance = instance
        self._attendance = attendance

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.instance.index == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other."""
        return self.instance.count == 1

    def sum(self, values: Sequence[float]) -> List[float]:
        """Return the sums of these numbers over all processes, in float64."""
        if self.alone:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        with self.naming_losses():
            dist.all_reduce(total)
        return total.tolist()

    def largest(self, value: int) -> int:
        """Return the largest of an integer over all processes."""
        if self.alone:
            return value
        number = torch.tensor([value])
        with self.naming_losses():
            dist.all_reduce(number, op=dist.ReduceOp.MAX)
        return int(number)

    def gather(self, value: Value) -> List[Value]:
        """Return what each process has, in order."""
        if self.alone:
            return [value]
        values: List[Any] = [None] * self.instance.count
        with self.naming_losses():
            dist.all_gather_object(values, value)
        return values

    def of_first(self, value: Value) -> Value:
        """Return what the first process has."""
        if self.alone:
            return value
        values: List[Any] = [value if self.first else None]
        with self.naming_losses():
            dist.broadcast_object_list(values)
        return values[0]

    def union(self, values: Sequence[Sortable]) -> List[Sortable]:
        """Return the values that any process has, sorted where there are several processes."""
        if self.alone:
            return list(values)
        if not self.largest(len(values)):
            return []
        return sorted({value for some in self.gather(list(values)) for value in some})

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Let what fails inside in one process fail in all of them, with one sentence.

        What is inside must not wait for the other processes.

        Raises:
            UserError: the first failure, by number of process; only the first process prints it.
        """
        if self.alone:
            yield
            return
        failure: Optional[BaseException] = None
        try:
            yield
        except ProcessLost:
            raise
        except (Exception, Interrupted) as error:
            failure = error
        if not self.largest(int(failure is not None)):
            return
        index, kind, text = next(
            (index, *failed)
            for index, failed in enumerate(self.gather(_described(failure)))
            if failed is not None
        )
        users = isinstance(failure, (UserError, Interrupted))
        if failure is not None and not users and exhausted(failure) is None:
            raise failure  # of the program, not of the user or the machine: with its traceback
        stopped = isinstance(kind, functools.partial)
        where = f"process {index} of {self.instance.count}: " if index and not stopped else ""
        raise self.agreed(kind(f"{where}{text}")) from failure

    @contextlib.contextmanager
    def naming_losses(self) -> Iterator[None]:
        """Turn gloo's errors, when another process is gone or still, into one sentence.

        The first process that is left prints it.

        Raises:
            ProcessLost: another process has ended, or has not answered for too long.
        """
        try:
            yield
        except RuntimeError as error:
            text = " ".join(str(error).split())
            if "gloo" not in text.lower() and "closed by peer" not in text:
                raise
            raise self._lost(text) from error

    def _lost(self, text: str) -> Union[ProcessLost, Interrupted]:
        """Return the error for what gloo says: who is gone or still, and what it has said."""
        missing, word = self._attendance.account() if self._attendance is not None else ([], None)
        others = [n for n in range(self.instance.count) if n not in missing]
        quiet = self.instance.index != min(others, default=0) or (word is not None and word.said)
        named = " and ".join(f"process {number} of {self.instance.count}" for number in missing)
        have = "have" if len(missing) > 1 else "has"
        if word is not None and word.signal_number:
            interrupted = Interrupted(word.text, word.signal_number)
            interrupted.quiet = quiet
            return interrupted
        if word is not None:
            what = f"{named}: {word.text}"
        elif "timed out" in text.lower() or (
            self._attendance is not None and self._attendance.stand_still(missing)
        ):
            what = (
                f"{named or 'another process'} of the run {have} not answered for long "
                f"(training.patience); it was stopped, cannot be reached, or waits for something "
                f"else"
            )
        else:
            reason = re.sub(r"^\[\S*\] ", "", text).partition(". ")[0]  # less gloo's own source
            what = f"{named or 'another process'} of the run {have} ended ({reason})"
        return ProcessLost(
            f"{what}; the run stands at its last checkpoint: start all processes again with "
            f"--resume",
            quiet=quiet,
        )

    def part(self, text: str, signal_number: int = 0) -> bool:
        """Tell the others why this process ends before them; return whether the first says it.

        Args:
            text: why.
            signal_number: the signal that it ends by; 0: none.
        """
        if self._attendance is None or not self._attendance.leave_word(Word(text, signal_number)):
            return False
        return self._attendance.heard(ROLL_CALL_SECONDS)

    def agreed(self, error: Failure) -> Failure:
        """Return an error that every process raises, to be printed by the first only."""
        error.share(quiet=not self.first)
        return error

    def leave(self) -> None:
        """Wait until all processes have come here, and part.

        A launcher ends the others as soon as one ends with a failure: so all end at once. The
        process group is left to the end of the process: torch 2.0.1 may wait for ever to end it.
        """
        if self.alone:
            return
        with contextlib.suppress(RuntimeError):  # one was ended by force: nothing to wait for
            dist.barrier()


def _described(failure: Optional[BaseException]) -> Any:
    """Return the class and the words of a failure, for other processes."""
    if failure is None:
        return None
    if isinstance(failure, UserError):
        return type(failure), str(failure)
    if isinstance(failure, Interrupted):
        return functools.partial(Interrupted, signal_number=failure.signal_number), str(failure)
    return ProcessLost, exhausted(failure) or f"{type(failure).__name__}: {failure}"
