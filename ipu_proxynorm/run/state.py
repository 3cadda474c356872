"""Whether a run is running, finished, stopped or failed: ``state.json`` in its folder."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import socket
import time
import warnings
from pathlib import Path
from typing import Iterator, Optional

from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.files.whole import replacing
from ipu_proxynorm.run.interruption import Interrupted

STATE = "state.json"


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


def read_state(folder: Path) -> Optional[RunState]:
    """Return how the run in ``folder`` stands; None: it does not say."""
    try:
        content = json.loads((folder / STATE).read_text(encoding="utf-8"))
        return RunState(**content)
    except (OSError, ValueError, TypeError):
        return None


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
            raise UserError(
                f"{str(self.folder / STATE)!r} cannot be written ({error.strerror}); free the disk "
                f"or choose another folder with runs=FOLDER"
            ) from error

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
