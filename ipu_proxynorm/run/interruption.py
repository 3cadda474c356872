"""Ctrl-C, SIGTERM and SIGHUP: once, the run stops at the next host call; twice, at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from typing import Any, Dict, Iterator, Optional

from ipu_proxynorm.errors import Shared, program_name, say


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
    """Let Ctrl-C, SIGTERM and SIGHUP end what is done meanwhile by an exception.

    Raises:
        Interrupted: one of them came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    former = {}

    def end(number: int, frame: Any) -> None:
        raise Interrupted("interrupted", number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
        """Note the first SIGINT, SIGTERM or SIGHUP meanwhile; the next one acts as ever."""
        if threading.current_thread() is not threading.main_thread():
            yield self  # signals reach the main thread only
            return
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
            if time.monotonic() - self._asked_at > self.echo:
                self._restore()
                os.kill(os.getpid(), number)
            return
        self.signal_number, self._asked_at = number, time.monotonic()
        if not self.echo:
            self._restore()
        if not self.quiet:
            say(
                f"{program_name()}: stopping after this host call, with a checkpoint; once more: "
                "at once"
            )

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()
