"""The store of a run's processes, asked with patience: one that is stopped or cut off is silent."""

from __future__ import annotations

import concurrent.futures
import queue
import threading
from typing import Any, Callable, Optional, TypeVar

import torch.distributed as dist

Value = TypeVar("Value")

#: How long the store may take to answer.
ANSWER_SECONDS = 10.0


class Unanswered(RuntimeError):
    """The store has not answered in time; it may yet."""


class PatientStore:
    """A store whose calls come back in time, in words where it does not answer.

    ``torch.distributed.TCPStore`` waits for ever for an answer (torch 2.14), as no connection is
    closed when its process is stopped or the network is lost. So one thread asks, one call after
    the other, and who wants to know waits for it.

    Args:
        store: the store.
    """

    def __init__(self, store: dist.Store) -> None:
        self._store = store
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._asking: Optional[threading.Thread] = None
        self._late: Optional[concurrent.futures.Future[Any]] = None

    def add(self, key: str, amount: int) -> int:
        """Add to a number, 0 at first; return the sum. Raises RuntimeError as all calls do."""
        return self._ask(lambda: self._store.add(key, amount))

    def set(self, key: str, value: str) -> None:
        """Set a key."""
        self._ask(lambda: self._store.set(key, value))

    def get(self, key: str) -> bytes:
        """Return what a key was set to; wait for it."""
        return self._ask(lambda: self._store.get(key))

    def _ask(self, call: Callable[[], Value]) -> Value:
        """Return what the call returns.

        Raises:
            Unanswered: it does not end in time, or an earlier one has not ended yet.
            RuntimeError: the store has gone.
        """
        if self._late is not None and not self._late.done():
            raise Unanswered("the processes' store does not answer")
        if not self._asks():
            return call()
        answer: concurrent.futures.Future[Value] = concurrent.futures.Future()
        self._calls.put(lambda: _answer(call, answer))
        try:
            return answer.result(ANSWER_SECONDS)
        except concurrent.futures.TimeoutError:
            if not answer.cancel():
                self._late = answer
            raise Unanswered(
                f"the processes' store has not answered for {ANSWER_SECONDS:.0f} s"
            ) from None

    def _asks(self) -> bool:
        """Start the thread that asks, unless it is there; return whether it could be started."""
        if self._asking is None or not self._asking.is_alive():  # it may have lacked memory
            asking = threading.Thread(target=self._ask_in_turn, daemon=True)
            try:
                asking.start()
            except RuntimeError:  # no more threads: without one there is no limit to waiting
                return False
            self._asking = asking
        return True

    def _ask_in_turn(self) -> None:
        while True:
            self._calls.get()()


def _answer(call: Callable[[], Value], answer: concurrent.futures.Future[Value]) -> None:
    """Make the call, unless nobody waits for it any more."""
    if not answer.set_running_or_notify_cancel():
        return
    try:
        answer.set_result(call())
    except Exception as error:
        answer.set_exception(error)
