"""Damaged files are named and counted, and a lost worker of a loader is one sentence."""

from __future__ import annotations

import signal
import threading
import warnings
from typing import Any, Iterable, Iterator, List

from torch.utils.data import Dataset

from ipu_proxynorm.data.image_set import image_set
from ipu_proxynorm.errors import UserError, UserNotice


class DataError(UserError):
    """The images cannot be read any further; what was trained until then is good."""


class DamageReport:
    """Names each damaged file of a set once, and refuses more than ``limit`` of them."""

    def __init__(self, dataset: Dataset[Any], limit: int) -> None:
        self._images, self._limit = image_set(dataset), limit
        self._named: List[str] = []

    def found(self) -> List[str]:
        """Return the files that this process has found to be damaged and not yet named."""
        damage = [] if self._images is None else self._images.damage()
        return [name for name in damage if name not in self._named]

    def check(self, found: Iterable[str], say: bool = True) -> None:
        """Warn of damaged files, of all processes, not yet named.

        Args:
            found: their names.
            say: print a warning of each; False where another process does.

        Raises:
            DataError: there are more than the limit, or no image is left.
        """
        for name in found:
            self._named.append(name)
            if say:
                warnings.warn(
                    f"data: {name!r} is no image or damaged, left out "
                    f"({len(self._named)} so far, data.max_corrupt={self._limit})",
                    UserNotice,
                    stacklevel=2,
                )
        if len(self._named) > self._limit:
            raise DataError(
                f"data.max_corrupt={self._limit}: {len(self._named)} files are no images or "
                f"damaged, {', '.join(map(repr, self._named[-3:]))} among them; repair or remove "
                f"them, or raise the limit"
            )
        if self._images is not None and len(self._named) >= self._images.files():
            raise DataError(
                f"data.path: none of the files below it is an image that can be read, "
                f"{', '.join(map(repr, self._named[-3:]))} among them; repair them"
            )


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


def watched(loader: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches of ``loader``.

    Raises:
        DataError: a worker process has died.
    """
    handler = child_handler()
    batches = iter(loader)
    while True:
        try:
            batch = next(batches)
            restore_child_handler(handler)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # The last two: it died while it handed a batch over.
            if isinstance(error, RuntimeError) and not (
                "DataLoader worker" in str(error) and "exited unexpectedly" in str(error)
            ):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"data.workers: a worker process died ({reason}); it may have run "
                f"out of memory: free some, or lower data.workers"
            ) from error
        yield batch
