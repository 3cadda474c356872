"""How far an epoch is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import datetime
import time
from typing import Any, Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ipu_proxynorm.run.run import Run
from ipu_proxynorm.training import StepResult


class EpochProgress:
    """Is told of each host call and of each epoch's end; a context.

    Args:
        console: where it is shown.
        run: that trains.
        done: host calls done of the epoch under way.

    Attributes:
        before: what stands before the epoch: which of several runs it is.
    """

    before = ""

    def __init__(self, console: Console, run: Run, done: int) -> None:
        self.console, self.done = console, done
        self.calls, self.training = run.arithmetic.host_calls, run.config.training

    def __enter__(self) -> None:
        """Begin to show."""

    def __exit__(self, *error: Any) -> None:
        """Show nothing any more."""

    def advance(self, result: StepResult) -> None:
        """Show that a host call is done."""
        self.done += 1

    def restart(self) -> None:
        """Count the next epoch's host calls."""
        self.done = 0

    def epoch(self, result: StepResult) -> str:
        """Return which epoch it is."""
        return f"{self.before}epoch {result.epoch}/{self.training.epochs}"


def figures(result: StepResult) -> str:
    """Return what came out of a host call."""
    return (
        f"loss {result.loss:.4f}  accuracy {result.accuracy:.1%}  "
        f"{result.images_per_second:,.0f} images/s"
    )


class Bar(EpochProgress):
    """A bar that moves, with the last host call's figures."""

    def __init__(self, console: Console, run: Run, done: int) -> None:
        super().__init__(console, run, done)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("", total=self.calls, completed=done, figures="")

    def __enter__(self) -> None:
        """Draw it."""
        self._bar.start()

    def __exit__(self, *error: Any) -> None:
        """Remove it."""
        self._bar.stop()

    def advance(self, result: StepResult) -> None:
        """Move it."""
        super().advance(result)
        self._bar.update(
            self._task, advance=1, description=self.epoch(result), figures=figures(result)
        )

    def restart(self) -> None:
        """Empty it."""
        super().restart()
        self._bar.reset(self._task)


class Lines(EpochProgress):
    """A line every training.line_seconds, but none where the epoch's own follows.

    Args:
        clock: gives the seconds that have gone by since some moment.
    """

    def __init__(
        self, console: Console, run: Run, done: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(console, run, done)
        self._clock = clock
        self._said = clock()
        self._began, self._first = self._said, done

    def advance(self, result: StepResult) -> None:
        """Print a line where it is time to."""
        super().advance(result)
        every, now = self.training.line_seconds, self._clock()
        if not every or now - self._said < every or self.done == self.calls:
            return
        self._said = now
        left = (now - self._began) / (self.done - self._first) * (self.calls - self.done)
        self.console.print(
            f"{self.epoch(result)}  host call {self.done}/{self.calls}  {figures(result)}  "
            f"{datetime.timedelta(seconds=round(left))} left of the epoch"
        )

    def restart(self) -> None:
        """Count time and host calls anew: the epoch's own line has just been printed."""
        super().restart()
        self._began = self._said = self._clock()
        self._first = 0


def epoch_progress(console: Console, run: Run, done: int) -> EpochProgress:
    """Return a bar; where there is no terminal to draw it on, lines.

    Args:
        console: where it is shown.
        run: that trains.
        done: host calls done of the epoch under way.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        return Bar(console, run, done)
    return Lines(console, run, done)
