"""Files that cannot be read are named and counted; a lost worker of a loader is one sentence."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import warnings
from typing import Any, Iterable, Iterator, List, NamedTuple, Optional, Sequence

from torch.utils.data import Dataset

from ipu_proxynorm.data.decoding import Reason
from ipu_proxynorm.data.image_set import image_set
from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.exhausted import exhausted


class DataError(UserError):
    """The images cannot be read any further; what was trained until then is good."""


class LeftOut(NamedTuple):
    """A file that cannot be read, and why; processes tell each other of it."""

    name: str
    reason: Reason


class DamageReport:
    """Names each file of a set that is left out once, with the reason; refuses too many of them.

    Args:
        dataset: the set.
        limit: how many damaged files there may be.
        share: the largest share of the set's files that may be left out, for whatever reason.
    """

    def __init__(self, dataset: Dataset[Any], limit: int, share: float = 1.0) -> None:
        self._images, self._limit, self._share = image_set(dataset), limit, share
        self._named: List[str] = []
        self._damaged: List[str] = []
        self._said = False

    def found(self) -> List[LeftOut]:
        """Return the files that this process has left out and not yet named."""
        files = [] if self._images is None else self._images.left_out()
        return [LeftOut(name, reason) for name, reason in files if name not in self._named]

    def check(self, found: Iterable[LeftOut], say: bool = True) -> None:
        """Warn of files left out, of all processes, not yet named.

        Args:
            found: what `found` returned in each process.
            say: print a warning of each; False where another process does.

        Raises:
            DataError: there are more than the limit, no image is left, or the machine is what
                keeps a file from being read.
        """
        self._say_strangers(say)
        for name, reason in found:
            if reason.is_the_machines:
                raise DataError(f"data: {name!r} {reason.sentence}; {_REMEDY[reason]}")
            self._named.append(name)
            count = ""
            if reason == Reason.DAMAGED:
                self._damaged.append(name)
                count = f" ({len(self._damaged)} so far, data.max_corrupt={self._limit})"
            if say:
                warnings.warn(
                    f"data: {name!r} {reason.sentence}, left out{count}", UserNotice, stacklevel=2
                )
        self._refuse()

    def _say_strangers(self, say: bool) -> None:
        files = () if self._images is None else self._images.strangers
        if files and say and not self._said:
            warnings.warn(
                f"data: {_are(len(files))} not read, by name no image: {_listed(files)}",
                UserNotice,
                stacklevel=3,
            )
        self._said = True

    def _refuse(self) -> None:
        if len(self._damaged) > self._limit:
            raise DataError(
                f"data.max_corrupt={self._limit}: {_are(len(self._damaged))} damaged: "
                f"{_listed(self._damaged)}; repair or remove what is damaged, or raise the limit"
            )
        if self._images is None or not self._named:
            return
        listed = _listed(self._named)
        if len(self._named) >= len(self._images):
            raise DataError(
                f"data.path: none of the files below it is an image that can be read: {listed}; "
                f"repair them"
            )
        if len(self._named) > self._share * len(self._images):
            raise DataError(
                f"data.max_left_out={self._share:g}: {len(self._named)} of {len(self._images)} "
                f"files left out: {listed}; repair or remove them, or raise the share"
            )


def _are(number: int) -> str:
    return "1 file is" if number == 1 else f"{number} files are"


def _listed(names: Sequence[str], most: int = 3) -> str:
    """Return the last of some names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(map(repr, names[-most:]))}{more}"


_REMEDY = {
    Reason.PERMISSION: "give it the right to be read, or remove it",
    Reason.MEMORY: "free some memory, or lower data.workers",
    Reason.FILES: "raise the limit (ulimit -n), or lower data.workers",
    Reason.VANISHED: "put it back, or mount its disk again, and go on with --resume",
    Reason.DISK: "see to the disk or network, and go on with --resume",
}


def child_handler() -> Any:
    """Return what handles SIGCHLD here, torch aside; None where it cannot be set."""
    if threading.current_thread() is not threading.main_thread():
        return None
    handler = signal.getsignal(signal.SIGCHLD)
    of_torch = getattr(handler, "__module__", "").startswith("torch.")
    return signal.SIG_DFL if of_torch else handler


def restore_child_handler(handler: Any) -> None:
    """Take back torch's handler, which raises the loss of a worker wherever the program is then.

    In the middle of a weight update, say. The loader notices it itself, within seconds.
    """
    if handler is not None and signal.getsignal(signal.SIGCHLD) is not handler:
        signal.signal(signal.SIGCHLD, handler)


def watched(loader: Iterable[Any], patience: float = math.inf) -> Iterator[Any]:
    """Yield the batches of ``loader``.

    Args:
        loader: torch's or PopTorch's.
        patience: how long its workers may take for a batch, seconds; then they are ended.

    Raises:
        DataError: they cannot be read any further: a worker process has died or does not answer,
            the machine is exhausted, or reading an image has raised what nobody expected.
    """
    handler = child_handler()
    batches: Optional[Iterator[Any]] = None
    if not getattr(loader, "num_workers", 0):
        patience = math.inf
    late: List[bool] = []
    while True:
        try:
            with _workers_ended_after(patience, late):
                batches = iter(loader) if batches is None else batches
                batch = next(batches)
        except StopIteration:
            return
        except Exception as error:
            status = _status_of_lost(batches)
            raise DataError(_why(error, patience if late else None, status)) from error
        finally:
            restore_child_handler(handler)
        yield batch


@contextlib.contextmanager
def _workers_ended_after(seconds: float, late: List[bool]) -> Iterator[None]:
    """Kill this process's workers when what is inside takes longer; note it in ``late``.

    torch's loader notices their end within seconds. A stopped one would also keep this process
    from ending.
    """

    def end() -> None:
        late.append(True)
        for worker in multiprocessing.active_children():
            if worker.daemon:
                worker.kill()

    if math.isinf(seconds):
        yield
        return
    timer = threading.Timer(seconds, end)
    timer.daemon = True
    with contextlib.suppress(RuntimeError):  # no more threads: nobody watches
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _status_of_lost(batches: Any) -> int:
    """Return the exit status of a worker that has ended by itself, minus a signal's number."""
    statuses = [worker.exitcode for worker in getattr(batches, "_workers", ())]
    return next((status for status in statuses if status), 0)


def _why(error: Exception, waited: Optional[float], status: int = 0) -> str:
    """Return in a sentence why no further batch comes.

    Args:
        error: what was raised.
        waited: seconds after which the workers were ended; None: they were not.
        status: the exit status of a worker that has ended; 0: not known.
    """
    text = _own_words(error)
    if isinstance(error, UserError):
        return text
    if waited is not None:
        return (
            f"data.workers: a worker process has given no images for {waited:.0f} s (three "
            f"quarters of training.patience); it was stopped, or its disk does not answer"
        )
    if _hands_over(error) and not os.access(tempfile.gettempdir(), os.W_OK):
        return (
            f"data.workers: the folder for temporary files, {tempfile.gettempdir()!r}, cannot be "
            f"written to any more ({text}); make it again, or set TMPDIR"
        )
    lost = "DataLoader worker" in text and "exited unexpectedly" in text
    if lost or isinstance(error, (ConnectionError, EOFError)):  # while it handed a batch over
        return _lost(text, status)
    return exhausted(error) or (
        f"data: reading the images failed ({text}); ipu-proxynorm --traceback shows where"
    )


def _hands_over(error: Exception) -> bool:
    """Tell whether an error may be of handing a batch over, which takes a temporary file."""
    of_worker = "DataLoader worker" in str(error)
    return of_worker or isinstance(error, (OSError, EOFError))


def _lost(text: str, status: int) -> str:
    """Return the sentence on a worker that has died: what is known of it, and what would help."""
    if status > 1:  # the number of an error, see `loader`
        unsent = OSError(status, os.strerror(status))
        return exhausted(unsent) or (
            f"data.workers: a worker process could not hand over a batch ({unsent.strerror}); "
            f"expected a folder for temporary files that it can write to: set TMPDIR"
        )
    if status in (-signal.SIGXCPU, -signal.SIGSEGV, -signal.SIGABRT, -signal.SIGTERM):
        name = signal.Signals(-status).name
        helps = "raise the limit (ulimit -t)" if name == "SIGXCPU" else "go on with --resume"
        return f"data.workers: a worker process died of {name} ({text}); {helps}"
    return (
        f"data.workers: a worker process died ({text}); it may have run out of memory: free "
        f"some, or lower data.workers"
    )


def _own_words(error: Exception) -> str:
    """Return the words of an error in one line, without a worker's traceback."""
    kind, lines = type(error).__name__, str(error).splitlines()
    if lines and lines[0].startswith("Caught ") and "worker process" in lines[0]:
        indented = [number for number, line in enumerate(lines) if line.startswith(" ")]
        kind, _, first = lines[max(indented, default=-1) + 1].partition(": ")
        kind = kind.rpartition(".")[2]
        lines = [first, *lines[max(indented, default=-1) + 2 :]]
    text = " ".join(" ".join(lines).split())
    if isinstance(error, UserError) or kind == "RuntimeError":
        return text
    return f"{kind}: {text}" if text else kind
