"""Combined batches for a PopTorch program, from datasets of single images."""

from __future__ import annotations

from typing import Any, Tuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.data.datasets import size_of
from ipu_proxynorm.errors import UserError

#: The label of a sample that only fills a batch: no loss, no count. torch's ``ignore_index``.
IGNORED = -100


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


def training_loader(
    dataset: Dataset[Any], options: poptorch.Options, micro_batch_size: int, workers: int = 0
) -> poptorch.DataLoader:
    """Return shuffled combined batches; the ragged end is dropped, anew at random each epoch.

    Raises:
        UserError: the dataset does not fill one combined batch.
    """
    loader = poptorch.DataLoader(
        options,
        dataset,
        batch_size=micro_batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )
    if len(loader) == 0:
        raise UserError(
            f"data: {size_of(dataset)} training images do not fill one combined batch of "
            f"{loader.combinedBatchSize}; lower ipu.micro_batch_size, replication_factor, "
            f"gradient_accumulation or device_iterations"
        )
    return loader


def validation_loader(
    dataset: Dataset[Any], options: poptorch.Options, micro_batch_size: int, workers: int = 0
) -> poptorch.DataLoader:
    """Return combined batches in order that hold every sample once; the last is filled up."""
    combined = micro_batch_size * options.replication_factor * options.device_iterations
    return poptorch.DataLoader(
        options,
        PaddedDataset(dataset, combined),
        batch_size=micro_batch_size,
        num_workers=workers,
    )
