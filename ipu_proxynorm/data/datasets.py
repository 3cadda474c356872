"""Datasets by name: uint8 images ``(C, H, W)`` with integer labels, split in two."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Sized, Tuple

import numpy as np
import sklearn.datasets
import torch
import torchvision
from torch.utils.data import Dataset, TensorDataset
from torchvision import transforms

from ipu_proxynorm.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Two sets of labelled images, and how the device brings their pixels to unit scale.

    Every sample is an image, uint8 ``(channels, *image_size)``, and a label, an int below
    ``num_classes``. ``mean`` and ``std`` are per channel, of pixels scaled to [0, 1].
    """

    name: str
    train: Dataset[Any]
    validation: Dataset[Any]
    num_classes: int
    channels: int
    image_size: Tuple[int, int]
    mean: Tuple[float, ...]
    std: Tuple[float, ...]

    def sizes(self) -> Tuple[int, int]:
        """Return the number of training and of validation images."""
        return size_of(self.train), size_of(self.validation)


def size_of(dataset: Dataset[Any]) -> int:
    """Return the number of samples of a map-style dataset."""
    assert isinstance(dataset, Sized)
    return len(dataset)


def digits(path: Optional[str], image_size: Optional[int]) -> ImageData:
    """Return scikit-learn's handwritten digits: 1,797 scans of 8x8, every fifth held out (360).

    Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998.
    """
    if path is not None:
        raise UserError(f"data.path={path!r}: digits come with scikit-learn; leave data.path out")
    bundle = sklearn.datasets.load_digits()
    pixels = np.rint(bundle.images * (255 / 16)).astype(np.uint8)  # 0..16 in the source
    images = torch.from_numpy(pixels).unsqueeze(1)  # (N, 1, 8, 8)
    if image_size is not None:
        size = [image_size, image_size]
        images = transforms.functional.resize(images, size, antialias=True)
    labels = torch.from_numpy(bundle.target).long()
    held_out = torch.arange(len(labels)) % 5 == 0
    scaled = images[~held_out].double() / 255
    return ImageData(
        name="digits",
        train=TensorDataset(images[~held_out], labels[~held_out]),
        validation=TensorDataset(images[held_out], labels[held_out]),
        num_classes=10,
        channels=1,
        image_size=(images.shape[2], images.shape[3]),
        mean=(float(scaled.mean()),),
        std=(float(scaled.std()),),
    )


def image_folder(path: Optional[str], image_size: Optional[int]) -> ImageData:
    """Return RGB images of ``path/train/<class>/`` and ``path/val/<class>/``, 224x224 by default.

    Crops as in torchvision's ImageNet recipes: training images are random resized crops, flipped
    at random; validation images are resized to 8/7 of the crop and cropped at the centre.
    """
    size = image_size or 224
    if path is None:
        raise UserError("data.path is not set: image_folder expects a folder with train/ and val/")
    for part in ("train", "val"):
        if not Path(path, part).is_dir():
            raise UserError(
                f"data.path={path!r}: no folder {str(Path(path, part))!r}; expected "
                f"train/<class>/ and val/<class>/ with images below data.path"
            )
    crop = transforms.RandomResizedCrop(size, antialias=True)
    augment = [crop, transforms.RandomHorizontalFlip(), transforms.PILToTensor()]
    whole = transforms.Resize(round(size * 8 / 7), antialias=True)
    plain = [whole, transforms.CenterCrop(size), transforms.PILToTensor()]
    parts = []
    for part, steps in (("train", augment), ("val", plain)):
        try:
            folder = torchvision.datasets.ImageFolder(
                str(Path(path, part)), transforms.Compose(steps)
            )
        except FileNotFoundError as error:
            raise UserError(f"data.path={path!r}: {error}") from error
        parts.append(folder)
    train, validation = parts
    if train.classes != validation.classes:
        differing = sorted(set(train.classes) ^ set(validation.classes))
        raise UserError(
            f"data.path={path!r}: train/ and val/ must hold the same classes; only one of them "
            f"holds {', '.join(differing[:5])}"
        )
    return ImageData(
        name="image_folder",
        train=train,
        validation=validation,
        num_classes=len(train.classes),
        channels=3,
        image_size=(size, size),
        mean=(0.485, 0.456, 0.406),  # of ImageNet, as everywhere
        std=(0.229, 0.224, 0.225),
    )


DATASETS: Dict[str, Callable[[Optional[str], Optional[int]], ImageData]] = {
    "digits": digits,
    "image_folder": image_folder,
}


def create_data(
    name: str, path: Optional[str] = None, image_size: Optional[int] = None
) -> ImageData:
    """Return the named dataset.

    Args:
        name: one of :data:`DATASETS`.
        path: where the images are, for datasets that do not come with a package.
        image_size: height and width in pixels; None: the dataset's own.

    Raises:
        UserError: the name is unknown, or the path is not what the dataset needs.
    """
    if name not in DATASETS:
        raise unknown_name("data.name: dataset", name, sorted(DATASETS))
    return DATASETS[name](path, image_size)
