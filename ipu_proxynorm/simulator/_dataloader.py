"""A data loader whose batches feed a whole call of the model."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Optional

import torch

from ._impl import createPoptorchError
from ._logging import logger
from ._options_impl import require
from ._utils import combined_batch_generator
from .alias import names
from .enums import DataLoaderMode
from .loading.data_accessor import AsynchronousDataAccessor, AsynchronousWorker
from .loading.sub_dataset import _SubDataset
from .options import Options

__all__ = ["AsynchronousDataAccessor", "AsynchronousWorker", "DataLoader"]

_BatchSampler = Any  # a torch Sampler, or any iterable, of sequences of indices


def _batch_sampler_len(batch_sampler: _BatchSampler) -> Optional[int]:
    """Return the number of batches, if the sampler knows it."""
    try:
        length = len(batch_sampler)  # type: ignore[arg-type]
    except (NotImplementedError, TypeError):
        return None
    return None if length is NotImplemented else length


def _microBatches(options: Options) -> int:
    """Return how many micro-batches one call of the model consumes."""
    groups = options.replication_factor // options.input_group_size
    return options.device_iterations * options.Training.gradient_accumulation * groups


class DataLoader(torch.utils.data.DataLoader):
    """torch's data loader with batches of ``combinedBatchSize`` rows.

    That is ``batch_size`` times device iterations, gradient accumulation and replicas (or input
    groups of replicas). In a distributed run each process reads its own part of the data set. The
    options are frozen.

    Args:
        options: those of the model.
        dataset: map-style or iterable.
        batch_size: the micro-batch; None passes the data set's elements on as they are.
        shuffle: read in random order; in a distributed run needs ``options.randomSeed``.
        num_workers: processes that read the data set.
        drop_last: leave out an incomplete combined batch at the end.
        persistent_workers: keep the processes over epochs (default: if there are any).
        auto_distributed_partitioning: split a map-style data set over processes.
        mode: read in this process, in an ``AsynchronousDataAccessor``, or in one that also joins
            batches.
        async_options: arguments for the accessor.
        rebatched_worker_size: rows that the workers load at once in mode ``AsyncRebatched``.
        batch_sampler: gives the indices of each micro-batch.
        kwargs: for torch's loader.

    Raises:
        Error: options that exclude each other.

    """

    def __init__(
        self,
        options: Options,
        dataset: Any,
        batch_size: Optional[int] = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: DataLoaderMode = DataLoaderMode.Sync,
        async_options: Optional[Dict[str, Any]] = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Optional[_BatchSampler] = None,
        **kwargs: Any,
    ) -> None:
        self._accessor: Optional[AsynchronousDataAccessor] = None
        require(isinstance(options, Options), f"options must be poptorch.Options but got {options}")
        self._is_user_batch_sampler_set = batch_sampler is not None
        if batch_sampler is not None:
            _checkBatchSampler(options, batch_size, shuffle, auto_distributed_partitioning)
            batch_size = getattr(batch_sampler, "batch_size", batch_size)
        options._freeze()
        self._options = options
        self._drop_last = drop_last
        # What a batch sampler leaves over returns when batches are joined (__init__.py:292, :427).
        self.rebatched_drop_last = drop_last and batch_sampler is None
        self._num_batches_to_combine = None if batch_size is None else _microBatches(options)
        self._combined_batch_size = (
            None if batch_size is None else batch_size * _microBatches(options)
        )
        self._shuffle_map_style_data_in_distributed_env = False
        if isinstance(dataset, torch.utils.data.IterableDataset):
            self._checkIterable(num_workers, auto_distributed_partitioning, kwargs)
        else:
            if not drop_last:
                self._warnOfLeftovers(len(dataset), batch_sampler)
            if options.Distributed.numProcesses > 1 and auto_distributed_partitioning:
                dataset = self._partition(dataset, bool(shuffle))
                # The permutation is drawn over the whole data set, not within a part of it.
                self._shuffle_map_style_data_in_distributed_env = bool(shuffle)
                shuffle = False
        rebatched_size = self._rebatchedSize(mode)
        super().__init__(
            dataset,
            shuffle=shuffle or False,
            num_workers=num_workers,
            persistent_workers=num_workers > 0
            if persistent_workers is None
            else persistent_workers,
            **self._batching(batch_sampler, rebatched_size, rebatched_worker_size),
            **kwargs,
        )
        if mode != DataLoaderMode.Sync:
            self._accessor = self._readAhead(async_options or {}, rebatched_size)

    def _batching(
        self,
        batch_sampler: Optional[_BatchSampler],
        rebatched_size: Optional[int],
        rebatched_worker_size: Optional[int],
    ) -> Dict[str, Any]:
        """Return the arguments of torch's loader that say what it puts in a batch."""
        rows = self._combined_batch_size
        if rebatched_size is not None and rebatched_worker_size is not None:
            require(
                rebatched_worker_size <= rebatched_size,
                f"The rebatched_worker_size ({rebatched_worker_size}) must be <= to the "
                f"combined batch size ({rebatched_size})",
            )
            rows = rebatched_worker_size
        elif batch_sampler is not None:  # which decides that itself
            rows = 1
        # Where batches are joined the accessor sees to what is left over.
        leaves_out = self._drop_last and rebatched_size is None and batch_sampler is None
        return {"batch_size": rows, "batch_sampler": batch_sampler, "drop_last": leaves_out}

    def _readAhead(
        self, async_options: Dict[str, Any], rebatched_size: Optional[int]
    ) -> AsynchronousDataAccessor:
        """Return the accessor that reads this loader in another process."""
        require(
            "rebatched_size" not in async_options,
            "You cannot use DataLoaderMode.AsyncRebatched and manually specify the "
            "rebatched_size in async_options",
        )
        return AsynchronousDataAccessor(self, **async_options, rebatched_size=rebatched_size)

    def _checkIterable(
        self, num_workers: int, auto_partitioning: bool, kwargs: Dict[str, Any]
    ) -> None:
        require(
            not auto_partitioning or self._options.Distributed.numProcesses == 1,
            "auto_distributed_partitioning not supported for IterableDataset",
        )
        if num_workers > 1 and "worker_init_fn" not in kwargs:
            logger.warning(
                "IterableDataset used with num_workers=%d but no worker_init_fn specified: as a "
                "result the DataLoader will return %d times each element in the dataset (See "
                "torch.utils.data.IterableDataset's documentation for more information)",
                num_workers,
                num_workers,
            )

    def _warnOfLeftovers(self, num_elements: int, batch_sampler: Optional[_BatchSampler]) -> None:
        if self._combined_batch_size is None or self._num_batches_to_combine is None:
            return
        if batch_sampler is None:
            step = self._combined_batch_size * self._options.Distributed.numProcesses
            if num_elements % step:
                logger.warning(
                    "The number of elements in the dataset (%d) is not divisible by the number of "
                    "elements processed per step (%d) and drop_last=False. The last tensor will "
                    "have a batch size of %d. To avoid having to handle this special case switch "
                    "to drop_last=True",
                    num_elements,
                    step,
                    num_elements % step,
                )
            return
        batches = _batch_sampler_len(batch_sampler)
        if batches is None:
            logger.warning(
                "The `batch_sampler` __len__ method is not implemented and drop_last=False. The "
                "last tensor may be incomplete - batch size < %d. To avoid having to handle this "
                "special case switch to drop_last=True.",
                self._num_batches_to_combine,
            )
        elif batches % self._num_batches_to_combine:
            logger.warning(
                "The number of batches generated by the batch sampler (%d) is not divisible by the "
                "number of batches processed per step (%d) and drop_last=False. The last tensor "
                "will hold %d of them. To avoid having to handle this special case switch to "
                "drop_last=True.",
                batches,
                self._num_batches_to_combine,
                batches % self._num_batches_to_combine,
            )

    def _partition(self, dataset: Any, shuffle: bool) -> _SubDataset:
        require(
            not shuffle or self._options.exists("random_seed"),
            "When using auto_distributed_partitioning you must set "
            "poptorch.Options.randomSeed() to ensure that tensors are in the same order in all "
            "processes.",
        )
        if self._combined_batch_size is None:
            raise AssertionError(
                "batch_size=None not allowed when using auto_distributed_partitioning."
            )
        return _SubDataset(dataset, self._options, self._combined_batch_size, self._drop_last)

    def _rebatchedSize(self, mode: DataLoaderMode) -> Optional[int]:
        """Rows that the accessor joins, or None if batches reach it whole."""
        if mode == DataLoaderMode.AsyncRebatched:
            return self._combined_batch_size
        several = self._combined_batch_size is not None and self._combined_batch_size > 1
        leftovers = mode == DataLoaderMode.Async and not self._drop_last and several
        return self._combined_batch_size if leftovers else None

    def __len__(self) -> int:
        if self._accessor is None or not self._accessor.rebatched_size:
            return super().__len__()
        full, rest = divmod(len(self.dataset), self._accessor.rebatched_size)  # type: ignore[arg-type]
        return full + (rest > 0 and not self.rebatched_drop_last)

    @property
    def combinedBatchSize(self) -> Optional[int]:
        """Rows of the data set that one call of the model consumes."""
        return self._combined_batch_size

    @property
    def options(self) -> Options:
        """The options that the loader was made with."""
        return self._options

    def terminate(self) -> None:
        """Stop the accessor's process, if there is one."""
        if self._accessor is not None:
            self._accessor.terminate()

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if self._accessor is not None:
            return iter(self._accessor)
        if self._shuffle_map_style_data_in_distributed_env:
            self.dataset.shuffle_global_indices()  # type: ignore[attr-defined]
            self.dataset.swap_range()  # type: ignore[attr-defined]
        if self._is_user_batch_sampler_set and (self._num_batches_to_combine or 1) != 1:
            return combined_batch_generator(
                super().__iter__(), self._num_batches_to_combine or 1, self._drop_last
            )
        return super().__iter__()


def _checkBatchSampler(
    options: Options,
    batch_size: Optional[int],
    shuffle: Optional[bool],
    auto_distributed_partitioning: bool,
) -> None:
    if batch_size != 1 or shuffle:
        raise createPoptorchError(
            "`batch_sampler` option is mutually exclusive with batch_size, shuffle."
        )
    if options.Distributed.numProcesses > 1 and auto_distributed_partitioning:
        raise createPoptorchError(
            "`batch_sampler` option is mutually exclusive with auto_distributed_partitioning=True."
        )


__getattr__ = names.getter(__name__)
