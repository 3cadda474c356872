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


def covers(data: ImageData) -> bool:
    """Tell whether `digest` says which images they are, and not only how many."""
    parts = (data.train, data.validation)
    return all(isinstance(_source(part), (TensorImages, ListedImages)) for part in parts)


def _source(part: Dataset[Any]) -> Any:
    """Return where the images of a part come from; None: it is not known."""
    while isinstance(part, Subset):
        part = part.dataset
    images = part.images if isinstance(part, ImageSet) else None
    while isinstance(images, CachedImages):
        images = images.source
    return images


def _add(found: Any, part: Dataset[Any]) -> None:
    found.update(f"{size_of(part)}\n".encode())
    images, subset = _source(part), part
    while isinstance(subset, Subset):
        found.update(f"{list(subset.indices)}\n".encode())
        subset = subset.dataset
    if isinstance(images, TensorImages):
        for tensor in (images.images, images.labels):
            found.update(tensor.contiguous().to(torch.uint8).numpy().tobytes())
    elif isinstance(images, ListedImages):
        for name, label in zip(images.listing.names, images.listing.labels):
            found.update(f"{label} {name}\n".encode("utf-8", "surrogateescape"))
