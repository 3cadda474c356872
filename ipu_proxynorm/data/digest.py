"""A digest of a data set: whether two processes see the same images, without reading files."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from ipu_proxynorm.data.image_data import ImageData, size_of
from ipu_proxynorm.data.image_set import CachedImages, ImageSet, ListedImages, TensorImages


def digest(data: ImageData) -> str:
    """Return the number of images of each part, and the beginning of a SHA-256 of what they are.

    Images in memory count with their pixels, files with their names below ``data.path`` and their
    labels: no file is opened. Of any other data set the number of images is all that is compared.
    """
    found = hashlib.sha256(f"{data.num_classes} {data.mean} {data.std}".encode())
    for part in (data.train, data.validation):
        _add(found, part)
    sizes = " and ".join(map(str, data.sizes()))
    return f"{sizes} images ({found.hexdigest()[:12]})"


def _add(found: Any, part: Dataset[Any]) -> None:
    found.update(f"{size_of(part)}\n".encode())
    while isinstance(part, Subset):
        found.update(f"{list(part.indices)}\n".encode())
        part = part.dataset
    images = part.images if isinstance(part, ImageSet) else None
    while isinstance(images, CachedImages):
        images = images.source
    if isinstance(images, TensorImages):
        for tensor in (images.images, images.labels):
            found.update(tensor.contiguous().to(torch.uint8).numpy().tobytes())
    elif isinstance(images, ListedImages):
        for name, label in zip(images.listing.names, images.listing.labels):
            found.update(f"{label} {name}\n".encode("utf-8", "surrogateescape"))
