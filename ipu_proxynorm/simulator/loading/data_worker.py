"""The process that fetches batches ahead of the model and leaves them in shared memory.

Parent and worker talk over two pipes with small tuples; tensors stay in shared memory. Epochs are
numbered, so that a parent that starts over only has to drop what still arrives from earlier ones.

Parent to worker: ``("start", epoch)`` (earlier epochs are no longer wanted), ``("free", slot)`` and
``("stop",)``. Worker to parent: a ``BatchBuffers`` first, then ``("data", epoch, slot, rows)`` and
``("end", epoch)``.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Deque, Iterable, Iterator, List, Optional, Tuple, Union

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from .._logging import logger
from .._utils import flattenTensorStructure, getCustomParser, reconstructTensorStructure
from ..poptorch_core import createError


@dataclass
class BatchBuffers:
    """What the parent needs to read batches.

    Attributes:
        template: a batch whose tensors are to be replaced.
        buffers: for each tensor of a batch, all slots: ``(slots, *shape)``.
        ready: which slots hold a batch: bool ``(slots,)``.

    """

    template: Any
    buffers: List[Tensor]
    ready: Tensor


@dataclass(frozen=True)
class WorkerSettings:
    """How the worker behaves; see ``AsynchronousDataAccessor``."""

    buffer_size: int
    load_indefinitely: bool
    early_preload: bool
    rebatched_size: Optional[int]
    rebatched_drop_last: bool


def _template(batch: Any) -> Any:
    """Return what a batch comes back as, its tensors empty.

    As PopTorch's (_dataloader.py:159): a tensor, a dictionary, an object of a registered type, else
    a list, of named tuples too.
    """
    empty = [torch.empty(0, dtype=tensor.dtype) for tensor in _flatTensors(batch)]
    if isinstance(batch, Tensor):
        return empty[0]
    if isinstance(batch, dict):
        return dict(zip(batch, empty))
    return empty if getCustomParser(batch) is None else reconstructTensorStructure(batch, empty)


def _flatTensors(batch: Any) -> List[Tensor]:
    """Return the tensors of a batch, which must be flat unless its type has a parser."""
    if not isinstance(batch, Tensor) and getCustomParser(batch) is None:
        elements = batch.values() if isinstance(batch, dict) else batch
        for index, element in enumerate(elements):
            if not isinstance(element, Tensor):
                raise AssertionError(
                    f"Tensor at index {index} is not a torch tensor ({type(element)}). "
                    "AsynchronousDataAccessor expects data to be organised as a flat 1D container "
                    "of tensors."
                )
    return flattenTensorStructure(batch)


def rebatch(batches: Iterable[List[Tensor]], size: int, drop_last: bool) -> Iterator[List[Tensor]]:
    """Join and cut batches of any number of rows into batches of ``size`` rows."""
    pending: List[List[Tensor]] = []
    rows = 0
    for batch in batches:
        while batch and len(batch[0]) > 0:
            taken = min(size - rows, len(batch[0]))
            pending.append([tensor[:taken] for tensor in batch])
            batch = [tensor[taken:] for tensor in batch]
            rows += taken
            if rows == size:
                yield [torch.cat(parts) for parts in zip(*pending)]
                pending, rows = [], 0
    if pending and not drop_last:
        yield [torch.cat(parts) for parts in zip(*pending)]


class _Worker:
    """The loop of the worker process."""

    def __init__(
        self, dataset: Iterable, settings: WorkerSettings, events: Connection, commands: Connection
    ) -> None:
        self._dataset = dataset
        self._settings = settings
        self._events = events
        self._commands = commands
        self._free: Deque[int] = deque(range(settings.buffer_size))
        # The epoch being loaded and the one that the parent last asked for.
        self._epoch = 0
        self._wanted = 0 if settings.early_preload else -1
        self._template: Any = None
        self._batches = self._newEpoch()
        first = next(self._batches, None)
        if first is None:
            raise createError("The Dataset is empty")
        self._layout = self._allocate(first)
        events.send(self._layout)
        self._store(first)

    def _newEpoch(self) -> Iterator[List[Tensor]]:
        batches = self._flatBatches()
        size = self._settings.rebatched_size
        return (
            batches if size is None else rebatch(batches, size, self._settings.rebatched_drop_last)
        )

    def _flatBatches(self) -> Iterator[List[Tensor]]:
        for batch in self._dataset:
            if self._template is None:
                self._template = _template(batch)
                yield _flatTensors(batch)
            else:
                # A dictionary's order may change from batch to batch.
                canonical = self._template if isinstance(self._template, dict) else None
                yield flattenTensorStructure(batch, canonical)

    def _allocate(self, first: List[Tensor]) -> BatchBuffers:
        slots = self._settings.buffer_size
        buffers = []
        for tensor in first:
            shape: Tuple[int, ...] = tuple(tensor.shape)
            if self._settings.rebatched_size is not None:
                shape = (self._settings.rebatched_size, *shape[1:])
            memory = torch.empty((slots, *shape), dtype=tensor.dtype)
            buffers.append(memory.share_memory_())
        ready = torch.zeros(slots, dtype=torch.bool).share_memory_()
        return BatchBuffers(self._template, buffers, ready)

    def _store(self, tensors: List[Tensor]) -> None:
        slot = self._free.popleft()
        rows: Optional[int] = None
        for buffer, tensor in zip(self._layout.buffers, tensors):
            target = buffer[slot]
            if self._settings.rebatched_size is not None and len(tensor) < len(target):
                rows = len(tensor)
                target = target[:rows]
            if target.shape != tensor.shape:
                raise AssertionError(
                    "All batches of an AsynchronousDataAccessor must have the same shape: expected "
                    f"{target.shape} but got {tensor.shape}"
                )
            target.copy_(tensor)
        self._layout.ready[slot] = True
        self._events.send(("data", self._epoch, slot, rows))

    def _maySendMore(self) -> bool:
        # One epoch ahead at most: an epoch may be empty, and nobody may ever ask for it.
        ahead = 1 if self._settings.load_indefinitely else 0
        return self._wanted >= 0 and self._epoch <= self._wanted + ahead

    def run(self) -> None:
        """Load and obey until told to stop."""
        while True:
            busy = bool(self._free) and self._maySendMore()
            # With nothing to do, sleep until the parent says something.
            while self._commands.poll(0 if busy else None):
                command = self._commands.recv()
                if command[0] == "stop":
                    return
                self._obey(command)
                busy = bool(self._free) and self._maySendMore()
            batch = next(self._batches, None)
            if batch is not None:
                self._store(batch)
                continue
            logger.debug("AsynchronousDataAccessor worker: end of dataset reached")
            self._events.send(("end", self._epoch))
            self._epoch += 1
            self._batches = self._newEpoch()

    def _obey(self, command: Tuple[str, int]) -> None:
        kind, number = command
        if kind == "free":
            self._free.append(number)
            return
        self._wanted = number
        if self._epoch < number:
            logger.debug("AsynchronousDataAccessor worker: creating a new iterator")
            self._epoch = number
            self._batches = self._newEpoch()


def workerMain(
    dataset: Union[str, Iterable],
    settings: WorkerSettings,
    events: Connection,
    commands: Connection,
    start_method: str,
) -> None:
    """Run the worker; a string is the path of a pickled data set.

    ``start_method`` is how the data set's own workers start: as they would in the parent, and not
    by a server of their own that imports torch once for each.
    """
    # An interrupt is for the program, which then ends its worker; half-way through a transfer it
    # would leave the other processes of the data set complaining.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    multiprocessing.set_start_method(start_method, force=True)
    try:
        logger.debug("AsynchronousDataAccessor worker process: %d", os.getpid())
        if isinstance(dataset, str):
            with open(dataset, "rb") as pickled:
                dataset = pickle.load(pickled)
        _Worker(dataset, settings, events, commands).run()
        logger.debug("AsynchronousDataAccessor worker: clean exit")
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        # Interrupted while starting, or left behind by the parent.
        pass
