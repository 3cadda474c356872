"""Combined batches for a PopTorch program, from datasets of single images."""

from __future__ import annotations

import copy
import errno
import multiprocessing
import multiprocessing.queues
import multiprocessing.util
import os
import signal
from multiprocessing.context import BaseContext
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate, get_worker_info

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.data.image_data import size_of
from ipu_proxynorm.data.image_set import IGNORED, sample_at
from ipu_proxynorm.data.order import EpochSampler, Share
from ipu_proxynorm.errors import UserError

#: Of the patience of processes with each other, what one has with its data workers: it must say
#: that they do not answer before the others say so of it.
WORKERS_SHARE = 0.75
#: Priority of what is done before all else where a worker ends; multiprocessing has 15 at most.
_FIRST = 100


def begin_worker(worker: int) -> None:
    """Let a worker process outlive Ctrl-C, and end where a batch cannot be handed over.

    Then, or where a terminal or a batch system tells all processes to stop, the run stops in its
    own time, and ends its workers. The queue to it would print a traceback and drop a batch that
    it cannot send, for which the run would wait.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    _Queue._on_queue_feeder_error = _end  # type: ignore[assignment]
    multiprocessing.util.Finalize(None, _end_without_folder, exitpriority=_FIRST)


class _Queue(multiprocessing.queues.Queue):  # type: ignore[type-arg]
    """A queue to a worker; that the worker has ended meanwhile is told by others, in a sentence."""

    @staticmethod
    def _on_queue_feeder_error(error: BaseException, thing: object) -> None:
        if getattr(error, "errno", None) != errno.EPIPE:
            multiprocessing.queues.Queue._on_queue_feeder_error(  # type: ignore[attr-defined]
                error, thing
            )


def _queue(maxsize: int = 0) -> _Queue:
    return _Queue(maxsize, ctx=multiprocessing.get_context())


def _workers(count: int) -> Dict[str, Any]:
    """Return what a loader is told of its worker processes."""
    if not count:
        return {"num_workers": 0}
    context: BaseContext = copy.copy(multiprocessing.get_context())
    context.Queue = _queue  # type: ignore[method-assign, assignment]
    return {
        "num_workers": count,
        "multiprocessing_context": context,
        "worker_init_fn": begin_worker,
    }


def _end(error: BaseException, *_: object) -> None:
    """End a worker; its status is the system's number of the error, for `watch` to read."""
    number = getattr(error, "errno", None) or 1
    os._exit(number if number < 128 else 1)


def _end_without_folder() -> None:
    """End a worker at once if its temporary folder is gone: to remove that prints tracebacks.

    Its socket is there, by which it hands over the memory that it shares.
    """
    folder = multiprocessing.current_process()._config.get("tempdir")  # type: ignore[attr-defined]
    if folder is not None and not os.path.isdir(folder):
        os._exit(0)


def batch_of(samples: List[Tuple[Tensor, int]]) -> List[Tensor]:
    """Return images (N, C, H, W) and labels (N,); of a worker process, in shared memory already.

    So that memory which is exhausted is an error of the worker's, whose text the run is told.
    """
    batch: List[Tensor] = default_collate(samples)
    if get_worker_info() is not None:
        for tensor in batch:
            tensor.share_memory_()
    return batch


class EpochDataset(Dataset[Tuple[Tensor, int]]):
    """A dataset whose samples are asked for by (epoch, number)."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return size_of(self.dataset)

    def __getitem__(self, key: Tuple[int, int]) -> Tuple[Tensor, int]:
        return sample_at(self.dataset, *key)


class PaddedDataset(Dataset[Tuple[Tensor, int]]):
    """A dataset filled up to a multiple of ``multiple`` with black images labelled ``IGNORED``.

    An IPU program has one batch shape; with the filling every real sample is seen exactly once.
    """

    def __init__(self, dataset: Dataset[Tuple[Tensor, int]], multiple: int) -> None:
        self.dataset = dataset
        self.size = size_of(dataset)
        self.padded = -(-self.size // multiple) * multiple

    def __len__(self) -> int:
        return self.padded

    def __getitem__(self, index: int) -> Tuple[Tensor, int]:
        if index < self.size:
            image, label = self.dataset[index]
            return image, int(label)
        if index >= self.padded:
            raise IndexError(index)
        return torch.zeros_like(self.dataset[0][0]), IGNORED


def training_share(options: poptorch.Options, micro_batch_size: int) -> Share:
    """Return what of each combined batch this process reads."""
    return Share(
        steps=options.device_iterations * options.Training.gradient_accumulation,
        rows=options.replication_factor * micro_batch_size,
        processes=options.Distributed.numProcesses,
        process=options.Distributed.processId,
    )


def training_loader(
    dataset: Dataset[Any],
    options: poptorch.Options,
    micro_batch_size: int,
    workers: int = 0,
    seed: int = 0,
    epoch: int = 1,
    call: int = 0,
) -> poptorch.DataLoader:
    """Return shuffled combined batches, each pass over them the next epoch.

    Order and samples are functions of the seed and the epoch: of no generator's state, nor of the
    number of workers. The ragged end is dropped, other images in each epoch.

    Args:
        dataset: map-style.
        options: the options of the training program.
        micro_batch_size: images that one replica computes at once.
        workers: processes that read images; 0: none.
        seed: the seed of the order.
        epoch: the first epoch, from 1.
        call: host calls of the first epoch to leave out, as they were made already.

    Raises:
        UserError: the dataset does not fill one combined batch.
    """
    share = training_share(options, micro_batch_size)
    if size_of(dataset) < share.combined_batch:
        raise UserError(
            f"data: {size_of(dataset)} training images do not fill one combined batch of "
            f"{share.combined_batch}; lower ipu.micro_batch_size, replication_factor, "
            f"gradient_accumulation or device_iterations"
        )
    return poptorch.DataLoader(
        options,
        EpochDataset(dataset),
        batch_size=micro_batch_size,
        sampler=EpochSampler(size_of(dataset), share, seed, epoch, call),
        auto_distributed_partitioning=False,
        drop_last=True,
        collate_fn=batch_of,
        **_workers(workers),
    )


def validation_loader(
    dataset: Dataset[Any], options: poptorch.Options, micro_batch_size: int, workers: int = 0
) -> poptorch.DataLoader:
    """Return combined batches in order that hold every sample once; the last is filled up.

    Each of several processes has its replicas' part of each combined batch, as in training.
    """
    share = Share(
        steps=options.device_iterations,
        rows=options.replication_factor * micro_batch_size,
        processes=options.Distributed.numProcesses,
        process=options.Distributed.processId,
    )
    whole = PaddedDataset(dataset, share.combined_batch)
    calls = np.arange(len(whole)).reshape(-1, share.combined_batch)
    own = np.concatenate([share.of(call) for call in calls])
    return poptorch.DataLoader(
        options,
        Subset(whole, own.tolist()),
        batch_size=micro_batch_size,
        auto_distributed_partitioning=False,
        collate_fn=batch_of,
        **_workers(workers),
    )
