"""Whether a run is running, finished, stopped or failed: ``state.json`` in its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional, Tuple

from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.exhausted import unwritten
from ipu_proxynorm.files.whole import replacing
from ipu_proxynorm.run.interruption import Interrupted

STATE = "state.json"
STATES = ("running", "finished", "stopped", "failed")


@dataclasses.dataclass
class RunState:
    """How a run stands.

    Args:
        state: ``running``, ``finished``, ``stopped`` (asked to, by Ctrl-C or a signal) or
            ``failed``.
        started: when training began first, ISO 8601 with the time zone.
        seconds: spent training, over all resumptions.
        process: id of the process that trains or trained last.
        host: its machine.
        message: why it stopped or failed.
    """

    state: str
    started: str
    seconds: float
    process: int
    host: str
    message: Optional[str] = None

    def describe(self) -> str:
        """Return the state in a word or two; ``died`` where the process has ended unrecorded."""
        if self.state != "running":
            return self.state
        if self.host != socket.gethostname():
            return f"running on {self.host}"
        return "running" if process_exists(self.process) else "died"


def process_exists(number: int) -> bool:
    """Tell whether a process of that id is alive here."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class Damaged(ValueError):
    """A record of a run that does not say what it should; the text says what is wrong."""


def load_state(folder: Path) -> Optional[RunState]:
    """Return how the run in ``folder`` stands; None: there is no record of it.

    Raises:
        Damaged: the record is not one that this program writes.
    """
    path = folder / STATE
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise Damaged(f"{STATE} is not a file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Damaged(f"{STATE} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{STATE} is not JSON") from error
    if not isinstance(content, dict):
        raise Damaged(f"{STATE} is not a record of names and values")
    names = {field.name for field in dataclasses.fields(RunState)}
    if not names - {"message"} <= content.keys() <= names:
        raise Damaged(f"{STATE} has other names than {', '.join(sorted(names))}")
    for name, (rightly, expected) in _EXPECTED.items():
        if not rightly(content.get(name)):
            raise Damaged(f"{STATE}: {name} is not {expected}")
    return RunState(**content)


def read_state(folder: Path) -> Optional[RunState]:
    """Return how the run in ``folder`` stands; None: it does not say, or its record is damaged."""
    try:
        return load_state(folder)
    except Damaged:
        return None


def is_number(value: Any, least: float = 0.0, most: float = math.inf) -> bool:
    """Tell whether a value of a JSON file is a finite number within limits."""
    is_real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_real and abs(value) <= sys.float_info.max and least <= value <= most


def _is_moment(value: Any) -> bool:
    try:
        datetime.datetime.fromisoformat(value).astimezone()
    except (TypeError, ValueError, OverflowError, OSError):
        return value == ""
    return True


#: What each field of the record is, and how it is recognised.
_EXPECTED: Dict[str, Tuple[Callable[[Any], bool], str]] = {
    "state": (STATES.__contains__, f"one of {', '.join(STATES)}"),
    "started": (_is_moment, "a time in ISO 8601"),
    "seconds": (lambda value: is_number(value, most=1e11), "a number of seconds"),
    "process": (
        lambda value: isinstance(value, int) and is_number(value, 1, 2**31 - 1),
        "the number of a process",
    ),
    "host": (lambda value: isinstance(value, str), "the name of a machine"),
    "message": (lambda value: value is None or isinstance(value, str), "a text or null"),
}


def write_state(folder: Path, state: RunState) -> None:
    """Write ``state.json``: the old or the new one at every instant."""
    text = json.dumps(dataclasses.asdict(state), indent=1) + "\n"
    with replacing(folder / STATE) as stream:
        stream.write(text.encode())


class StateRecorder:
    """Keeps ``state.json`` of a run that begins or goes on now."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        former = read_state(folder)
        self._before = former.seconds if former else 0.0
        self._began = time.monotonic()
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.started = former.started if former else now

    def write(self, state: str = "running", message: Optional[str] = None) -> None:
        """Write how the run stands now.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        seconds = self._before + time.monotonic() - self._began
        process, host = os.getpid(), socket.gethostname()
        try:
            write_state(self.folder, RunState(state, self.started, seconds, process, host, message))
        except OSError as error:
            raise UserError(unwritten(repr(str(self.folder / STATE)), error)) from error

    def end(self, state: str, message: Optional[str] = None) -> None:
        """Write how the run ended; where that fails, say so beside what ended it."""
        try:
            self.write(state, message)
        except UserError as error:
            warnings.warn(f"{error}; the run is {state}", UserNotice, stacklevel=2)


@contextlib.contextmanager
def recorded(folder: Path) -> Iterator[StateRecorder]:
    """Record a run as running meanwhile, and then how it ended.

    Raises:
        UserError: the folder cannot be written as it begins.
    """
    recorder = StateRecorder(folder)
    recorder.write()
    try:
        yield recorder
    except (Interrupted, KeyboardInterrupt) as error:
        recorder.end("stopped", str(error) or "interrupted")
        raise
    except BaseException as error:
        with contextlib.suppress(UserError):  # a full disk is what may have failed the run
            recorder.write("failed", str(error).partition("\n")[0] or type(error).__name__)
        raise
    else:
        recorder.end("finished")
