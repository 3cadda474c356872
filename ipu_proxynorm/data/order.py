"""Which images a process reads, in which order: a function of the seed and the epoch alone."""

from __future__ import annotations

import dataclasses
from typing import Iterator, List, Tuple

import numpy as np
from torch.utils.data import Sampler

from ipu_proxynorm.data.augment import ORDER, stream


@dataclasses.dataclass(frozen=True)
class Share:
    """How a combined batch of all processes falls to them, and which of them this one is.

    PopTorch reads a combined batch as ``[device iteration][accumulation step][replica]``; a
    process has ``1 / processes`` of the replicas, next to each other.

    Args:
        steps: device iterations times gradient accumulation.
        rows: images of one process in one step: its replicas times the micro-batch.
        processes: how many there are.
        process: the number of this one.
    """

    steps: int
    rows: int
    processes: int = 1
    process: int = 0

    @property
    def combined_batch(self) -> int:
        """Images of one host call, of all processes together."""
        return self.steps * self.processes * self.rows

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Return this process's part of ``rows``, one for each image of a combined batch."""
        cut = rows.reshape(self.steps, self.processes, self.rows, *rows.shape[1:])
        return cut[:, self.process].reshape(-1, *rows.shape[1:])


def epoch_order(size: int, share: Share, seed: int, epoch: int, first_call: int = 0) -> List[int]:
    """Return the images that one process reads in ``epoch`` from host call ``first_call`` on.

    All processes together read what one process with all replicas would, replica by replica. What
    does not fill a combined batch is left out, other images in each epoch.
    """
    calls = size // share.combined_batch
    order = stream(ORDER, seed, epoch).permutation(size)[: calls * share.combined_batch]
    cut = order.reshape(calls, share.steps, share.processes, share.rows)
    return np.ravel(cut[first_call:, :, share.process]).tolist()


class EpochSampler(Sampler[Tuple[int, int]]):
    """Gives (epoch, image number); each pass over it is the next epoch.

    Args:
        size: number of images.
        share: what of them this process reads.
        seed: the seed of the order.
        epoch: the first epoch, from 1.
        call: host calls of the first epoch that were made already.
    """

    def __init__(
        self, size: int, share: Share, seed: int = 0, epoch: int = 1, call: int = 0
    ) -> None:
        self.size, self.share, self.seed = size, share, seed
        self.epoch, self.call = epoch, call

    def __len__(self) -> int:
        return self.size // self.share.combined_batch * self.share.steps * self.share.rows

    def __iter__(self) -> Iterator[Tuple[int, int]]:
        epoch, call = self.epoch, self.call
        self.epoch, self.call = epoch + 1, 0
        order = epoch_order(self.size, self.share, self.seed, epoch, call)
        return iter([(epoch, index) for index in order])
