"""The parent's side of asynchronous data loading."""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import tempfile
import weakref
from typing import Any, Iterable, Iterator, List, Optional, Union

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from .._impl import createPoptorchError
from .._logging import logger
from .._options_impl import require
from .._utils import reconstructTensorStructure
from ..enums import SharingStrategy
from .data_worker import BatchBuffers, WorkerSettings, workerMain

_START_METHODS = {
    SharingStrategy.Fork: "fork",
    SharingStrategy.ForkServer: "forkserver",
    SharingStrategy.SharedMemory: "spawn",
    SharingStrategy.FileSystem: "spawn",
}
_PATIENCE_S = 10.0


class _SharedBuffers:
    """The slots in shared memory and which of them are filled."""

    def __init__(self, layout: BatchBuffers) -> None:
        self._layout = layout
        self._slots = len(layout.ready)

    @property
    def indices_mem(self) -> Tensor:
        """Which slots hold a batch: bool ``(slots,)``."""
        return self._layout.ready

    def read(self, slot: int, rows: Optional[int]) -> Any:
        """Return the batch in a slot, cut to ``rows`` rows, without copying it."""
        tensors: List[Tensor] = [buffer[slot] for buffer in self._layout.buffers]
        if rows is not None:
            tensors = [tensor[:rows] for tensor in tensors]
        return reconstructTensorStructure(self._layout.template, tensors)

    def release(self, slot: int) -> None:
        """Mark a slot as empty."""
        self._layout.ready[slot] = False


class AsynchronousWorker:
    """A worker process and the epoch that is being read from it."""

    def __init__(
        self, dataset: Iterable, settings: WorkerSettings, sharing_strategy: SharingStrategy
    ) -> None:
        self._epoch = -1
        self._used = True
        self._ended = False
        self._slot: Optional[int] = None
        context: Any = multiprocessing.get_context(_START_METHODS[sharing_strategy])
        if sharing_strategy == SharingStrategy.ForkServer:
            # The server imports torch once for all workers.
            context.set_forkserver_preload(["__main__", "torch", __name__])
        self._events, events = context.Pipe(duplex=False)
        commands, self._commands = context.Pipe(duplex=False)
        logger.debug("AsynchronousDataAccessor parent process: %d", os.getpid())
        with contextlib.ExitStack() as stack:
            source: Union[str, Iterable] = dataset
            if sharing_strategy == SharingStrategy.FileSystem:
                directory = stack.enter_context(tempfile.TemporaryDirectory())
                source = os.path.join(directory, "dataset.pkl")
                with open(source, "wb") as pickled:
                    pickle.dump(dataset, pickled, protocol=4)
            # Not a daemon: the data set may have worker processes of its own.
            self._process = context.Process(
                target=workerMain,
                args=(source, settings, events, commands, multiprocessing.get_start_method()),
            )
            self._process.start()
            events.close()
            commands.close()
            self._data_buffers = _SharedBuffers(self._receiveLayout())

    def _receiveLayout(self) -> BatchBuffers:
        try:
            return self._events.recv()
        except EOFError:
            self._process.join()
        raise createPoptorchError(
            "AsynchronousDataAccessor worker thread failed to start (Check above for details)"
        )

    def _send(self, *command: Any) -> None:
        # A worker that is gone is noticed where its data are missed.
        with contextlib.suppress(BrokenPipeError):
            self._commands.send(command)

    def resetIterator(self) -> None:
        """Begin a new epoch, unless the current one is untouched."""
        if not self._used:
            return
        self.releaseElement()
        self._epoch += 1
        self._used = self._ended = False
        self._send("start", self._epoch)

    def releaseElement(self) -> None:
        """Let the worker overwrite the batch that was read last."""
        if self._slot is not None:
            self._free(self._slot)
            self._slot = None

    def _free(self, slot: int) -> None:
        self._data_buffers.release(slot)
        self._send("free", slot)

    def acquireElement(self) -> Optional[Any]:
        """Wait for the next batch; None at the end of the epoch."""
        self._used = True
        while not self._ended:
            try:
                kind, epoch, *where = self._events.recv()
            except EOFError:
                raise AssertionError("An error occurred in the data fetcher") from None
            if kind == "end":
                self._ended = epoch == self._epoch
            elif epoch == self._epoch:
                self._slot, rows = where
                return self._data_buffers.read(where[0], rows)
            else:
                self._free(where[0])
        return None

    def terminate(self) -> None:
        """End the process: by asking, and by force if it is lost in the data set."""
        self._send("stop")
        self._process.join(timeout=_PATIENCE_S)
        if self._process.exitcode is None:
            self._process.terminate()
            self._process.join()


class AsynchronousDataAccessor:
    """Iterates over a data set that another process loads ahead of time.

    The batch returned lies in shared memory and is overwritten once the next one is asked for.

    Args:
        dataset: any iterable of tensors or of flat containers of tensors, all of the same shapes.
        buffer_size: batches that the worker may be ahead.
        miss_sleep_time_in_ms: accepted for compatibility; the worker is woken, it does not poll.
        load_indefinitely: begin the next epoch before it is asked for.
        early_preload: begin loading before the first iterator is created.
        sharing_strategy: how the process is started.
        rebatched_size: join single rows to batches of this size in the worker.

    Raises:
        Error: the worker did not start, or the data loader has an accessor already.

    """

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: SharingStrategy = SharingStrategy.ForkServer,
        rebatched_size: Optional[int] = None,
    ) -> None:
        self._worker: Optional[AsynchronousWorker] = None
        if getattr(dataset, "_accessor", None) is not None:
            raise createPoptorchError(
                "The DataLoader already uses an AsynchronousDataAccessor internally. Either use "
                "the existing one or set mode='poptorch.DataLoaderMode.Sync' in the DataLoader."
            )
        if rebatched_size is None:
            _requireNoLeftovers(dataset)
        else:
            require(rebatched_size > 1, "rebatched_size must be None or greater than 1")
        self._dataset = dataset
        self.rebatched_size = rebatched_size
        settings = WorkerSettings(
            buffer_size,
            load_indefinitely,
            early_preload,
            rebatched_size,
            bool(getattr(dataset, "rebatched_drop_last", True)),
        )
        self._worker = AsynchronousWorker(dataset, settings, sharing_strategy)
        self._finalizer = weakref.finalize(self, AsynchronousWorker.terminate, self._worker)
        # Registered after multiprocessing's own exit function, so it runs before that one waits for
        # the process.
        atexit.register(self._finalizer)

    def terminate(self) -> None:
        """Stop the worker process."""
        if self._worker is not None:
            self._finalizer()
            atexit.unregister(self._finalizer)
            self._worker = None

    def __len__(self) -> int:
        length = len(self._dataset)
        # A data loader that owns its accessor counts the batches itself.
        if self.rebatched_size and getattr(self._dataset, "_accessor", None) is not self:
            length = length * self._dataset.batch_size // self.rebatched_size
        return length

    def __iter__(self) -> Iterator[Any]:
        self._requireWorker().resetIterator()
        return self

    def __next__(self) -> Any:
        worker = self._requireWorker()
        worker.releaseElement()
        element = worker.acquireElement()
        if element is None:
            raise StopIteration
        return element

    def _requireWorker(self) -> AsynchronousWorker:
        if self._worker is None:
            raise AssertionError("The AsynchronousDataAccessor has been terminated")
        return self._worker


def _requireNoLeftovers(dataset: Any) -> None:
    """Refuse a loader whose last batch may be smaller: all slots have one shape."""
    if not isinstance(dataset, torch.utils.data.DataLoader) or dataset.drop_last:
        return
    if getattr(dataset, "_is_user_batch_sampler_set", True):
        return
    require(
        dataset.combinedBatchSize in (None, 1),  # type: ignore[attr-defined]
        "The 'drop_last=False' option from the DataLoader only works if 'rebatched_size' is "
        "specified too.",
    )
