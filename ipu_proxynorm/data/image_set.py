"""Training and validation sets of images: decoded, kept, augmented, and damage reported."""

from __future__ import annotations

import abc
import copy
import dataclasses
import os
import shutil
from typing import Any, Callable, List, Optional, Protocol, Sequence, Tuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from ipu_proxynorm.data.augment import Augmentation
from ipu_proxynorm.data.decoding import Reason, Unreadable
from ipu_proxynorm.data.files import Listing, Store
from ipu_proxynorm.data.libraries import transforms

#: The label of a sample that only fills a batch: no loss, no count. torch's ``ignore_index``.
IGNORED = -100

#: Decoded images are kept in memory up to this many bytes a set.
CACHE_BYTES = 2**30

#: Where Linux keeps memory that processes share. Containers often have 64 MiB of it, and what is
#: written beyond that kills the process.
SHARED_MEMORY = "/dev/shm"

Sample = Tuple[Tensor, int]


class Images(Protocol):
    """Where images come from: each one's uint8 tensor ``(C, H, W)`` and label, by number."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int) -> Sample:
        """Return one image and its label; raises :class:`Unreadable` where it is damaged."""

    def name(self, index: int) -> str:
        """Return what a person finds the image by."""


class TensorImages:
    """Images that lie in memory: uint8 ``(N, C, H, W)`` and labels ``(N,)``."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.images[index], int(self.labels[index])

    def name(self, index: int) -> str:
        """Return the image's number."""
        return f"image {index}"


class ListedImages(abc.ABC):
    """Images that are listed with their labels, and decoded whenever they are asked for."""

    def __init__(self, listing: Listing) -> None:
        transforms()  # decoding needs it: here once, and not a second in each worker process
        self.listing = listing

    def __len__(self) -> int:
        return len(self.listing.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index), self.listing.labels[index]

    def chosen(self, numbers: Sequence[int]) -> ListedImages:
        """Return the images of these numbers."""
        part = copy.copy(self)
        names = [self.listing.names[number] for number in numbers]
        labels = [self.listing.labels[number] for number in numbers]
        part.listing = dataclasses.replace(self.listing, names=names, labels=labels)
        return part

    @abc.abstractmethod
    def read(self, index: int) -> Tensor:
        """Return the pixels of one image; raises :class:`Unreadable` where it is damaged."""

    def name(self, index: int) -> str:
        """Return what a person finds the image by."""
        return self.listing.names[index]


class FileImages(ListedImages):
    """Image files in a folder or archive."""

    def __init__(self, store: Store, listing: Listing) -> None:
        super().__init__(listing)
        self.store = store

    def read(self, index: int) -> Tensor:
        """Return the pixels of one file."""
        return self.store.read(self.listing.names[index])

    def name(self, index: int) -> str:
        """Return the file's path."""
        return str(self.store.path / self.listing.names[index])


def cache_room() -> int:
    """Return how many bytes of images may be kept for all processes: half of what is free."""
    if not os.path.isdir(SHARED_MEMORY):
        return CACHE_BYTES
    return min(CACHE_BYTES, shutil.disk_usage(SHARED_MEMORY).free // 2)


class CachedImages:
    """Images resized to one size when they are first read, and kept for all worker processes.

    Where there is no room for them they are read each time.

    Args:
        source: the images.
        prepare: resizes one to ``(C, *size)``, the same way each time.
        shape: (C, H, W).
    """

    def __init__(
        self, source: Images, prepare: Callable[[Tensor], Tensor], shape: Tuple[int, int, int]
    ) -> None:
        self.source, self.prepare = source, prepare
        size = len(source)
        self._cache: Optional[Tensor] = None
        if size * shape[0] * shape[1] * shape[2] <= cache_room():
            self._cache = torch.empty((size, *shape), dtype=torch.uint8).share_memory_()
            self._labels = torch.zeros(size, dtype=torch.int32).share_memory_()
            self._present = torch.zeros(size, dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample:
        if self._cache is None:
            image, label = self.source[index]
            return self.prepare(image), label
        if not self._present[index]:
            image, label = self.source[index]
            self._cache[index] = self.prepare(image)
            self._labels[index] = label
            self._present[index] = True  # last: another process may be reading
        return self._cache[index], int(self._labels[index])

    def name(self, index: int) -> str:
        """Return what the source calls the image."""
        return self.source.name(index)


class ImageSet(Dataset[Sample]):
    """Samples: uint8 images ``(C, H, W)`` of one size and labels.

    Args:
        images: where they come from.
        augment: what training does to each, anew in every epoch; None: nothing.
        substitute: show the next readable image in the place of a damaged one (training), rather
            than a black one labelled ``IGNORED`` (validation).
        shape: the shape of a sample, for the black image.
        strangers: files beside the images whose names are no image's.
    """

    def __init__(
        self,
        images: Images,
        shape: Tuple[int, int, int],
        augment: Optional[Augmentation] = None,
        substitute: bool = False,
        strangers: Tuple[str, ...] = (),
    ) -> None:
        self.images, self.shape, self.augment = images, shape, augment
        self.substitute = substitute
        self.strangers = strangers
        # A `Reason` an image, 0 for none, written by whichever process meets it.
        self.reasons = torch.zeros(len(images), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample as the first epoch shows it."""
        return self.at(1, index)

    def at(self, epoch: int, index: int) -> Sample:
        """Return a sample as ``epoch`` shows it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        for number in range(index, index + len(self)):
            position = number % len(self)
            try:
                image, label = self.images[position]
            except Unreadable as error:
                self.reasons[position] = int(error.reason)
                if not self.substitute:
                    break
                continue
            if self.augment is not None:
                image = self.augment(image, epoch, index)
            return image, label
        return torch.zeros(self.shape, dtype=torch.uint8), IGNORED

    def left_out(self) -> List[Tuple[str, Reason]]:
        """Return the files that could not be read so far, and why."""
        found = self.reasons.nonzero().flatten().tolist()
        return [(self.images.name(index), Reason(int(self.reasons[index]))) for index in found]


def sample_at(dataset: Dataset[Any], epoch: int, index: int) -> Sample:
    """Return a sample of any map-style dataset as ``epoch`` shows it."""
    if isinstance(dataset, Subset):
        return sample_at(dataset.dataset, epoch, int(dataset.indices[index]))
    if isinstance(dataset, ImageSet):
        return dataset.at(epoch, index)
    image, label = dataset[index]
    return image, int(label)


def image_set(dataset: Dataset[Any]) -> Optional[ImageSet]:
    """Return the image set behind ``dataset``; None if there is none."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset if isinstance(dataset, ImageSet) else None
