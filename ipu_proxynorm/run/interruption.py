"""Signals that ask a run to stop: once, it does so at the next host call; twice, at once."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
import time
from typing import Any, Dict, Iterator, Optional

from ipu_proxynorm.errors import Shared, program_name, say

#: The user's, and those of batch systems: before they take the machine away, or where the limit of
#: CPU time is reached. The latter comes again each second.
STOPPING = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)
#: CPU time that is kept back for the checkpoint, of a limit that leaves none, seconds at most.
_KEPT_SECONDS = 60


class Interrupted(Shared, BaseException):
    """A run that a signal has stopped; what it had done is in a checkpoint.

    No Exception, as KeyboardInterrupt is none: whoever handles those must not keep it from ending.

    Args:
        message: what a person reads.
        signal_number: which signal it was.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


@contextlib.contextmanager
def ending_in_a_sentence() -> Iterator[None]:
    """Let signals that ask a run to stop end what is done meanwhile by an exception.

    Raises:
        Interrupted: one of them came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    former = {}

    def end(number: int, frame: Any) -> None:
        raise Interrupted("interrupted", number)

    for number in STOPPING:
        # Else someone wants it otherwise.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            former[number] = signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class Interruption:
    """Whether a signal has asked the run to stop.

    Args:
        quiet: another process of the run prints that it stops.
        echo: seconds in which the same signal again is the launcher passing on the first, which
            the terminal has sent to all processes of the run.
    """

    def __init__(self, quiet: bool = False, echo: float = 0.0) -> None:
        self.signal_number: Optional[int] = None
        self.quiet, self.echo = quiet, echo
        self._former: Dict[int, Any] = {}
        self._asked_at = 0.0

    @contextlib.contextmanager
    def watch(self) -> Iterator[Interruption]:
        """Note the first signal that asks the run to stop; the next one acts as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # signals reach the main thread only
            return
        keep_cpu_time()
        for number in STOPPING:
            # A shell's background job ignores SIGINT, and nohup's SIGHUP: left so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._note)
        try:
            yield self
        finally:
            self._restore()

    def reader_left(self) -> None:
        """Ask the run to stop, as the signal would by which other programs end then."""
        if self.signal_number is None:
            self.signal_number, self._asked_at = signal.SIGPIPE, time.monotonic()

    def _note(self, number: int, frame: Any) -> None:
        if self.signal_number is not None:
            if number == self.signal_number == signal.SIGXCPU:
                return
            if time.monotonic() - self._asked_at > self.echo:
                self._restore()
                os.kill(os.getpid(), number)
            return
        self.signal_number, self._asked_at = number, time.monotonic()
        if not self.echo and number != signal.SIGXCPU:
            self._restore()
        if not self.quiet:
            why = "CPU time (ulimit -t) is used up: " if number == signal.SIGXCPU else ""
            say(
                f"{program_name()}: {why}stopping after this host call, with a checkpoint; once "
                f"more: at once"
            )

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()


def keep_cpu_time() -> None:
    """Ask to be told of the limit of CPU time before it ends the process without a word.

    ``ulimit -t`` sets both limits, and at the hard one the system sends SIGKILL.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if hard != resource.RLIM_INFINITY and soft == hard:
        kept = min(_KEPT_SECONDS, hard // 4)
        resource.setrlimit(resource.RLIMIT_CPU, (hard - kept, hard))
