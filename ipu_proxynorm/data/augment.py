"""Crops and flips of single images: functions of the seed, the epoch and the image's number."""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict

import numpy as np
import torch
from torch import Tensor

from ipu_proxynorm.data.libraries import transforms

#: How training images are augmented, by the name that ``data.augment`` gives.
AUGMENTATIONS = ("none", "crop", "resized")

#: Sides of an image, long over short, up to which the whole of it is resized.
LONGEST = 4

#: What the streams of random numbers are for; the first word of each stream's seed.
ORDER, AUGMENT = 0, 1


def stream(purpose: int, seed: int, *numbers: int) -> np.random.Generator:
    """Return the generator of ``purpose`` that belongs to these numbers and to no other."""
    return np.random.default_rng([purpose, seed, *numbers])


def padded_crop(image: Tensor, top: int, left: int, padding: int) -> Tensor:
    """Return ``image`` (C, H, W), padded with black, cropped to its own size at (top, left).

    ``top`` and ``left`` are from 0 to ``2 * padding``; ``padding`` for both is the image itself.
    """
    height, width = image.shape[-2:]
    result = torch.zeros_like(image)
    down, right = top - padding, left - padding
    rows = slice(max(down, 0), height + min(down, 0))
    columns = slice(max(right, 0), width + min(right, 0))
    into_rows = slice(max(-down, 0), height + min(-down, 0))
    into_columns = slice(max(-right, 0), width + min(-right, 0))
    result[:, into_rows, into_columns] = image[:, rows, columns]
    return result


def crop_and_flip(image: Tensor, size: int, random: np.random.Generator) -> Tensor:
    """Shift a ``(C, size, size)`` image by up to an eighth of its size, and mirror half of them.

    For 32x32 images: padding of 4, as of He et al. 2015 (arXiv 1512.03385, section 4.2).
    """
    padding = size // 8
    top, left = random.integers(0, 2 * padding + 1, 2)
    image = padded_crop(image, int(top), int(left), padding)
    return image.flip(-1) if random.integers(2) else image


def resized_crop_and_flip(image: Tensor, size: int, random: np.random.Generator) -> Tensor:
    """Crop 8 % to 100 % of a ``(C, H, W)`` image at random to ``(C, size, size)``; mirror half.

    As torchvision's ImageNet recipes: Szegedy et al. 2014 (arXiv 1409.4842, section 6).
    """
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's own generator
        torch.manual_seed(int(random.integers(2**63)))
        box = transforms().RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3))
    image = transforms().functional.resized_crop(image, *box, [size, size], antialias=True)
    return image.flip(-1) if random.integers(2) else image


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """One of :data:`AUGMENTATIONS` at a resolution, in pixels, with the run's seed."""

    name: str
    size: int
    seed: int = 0

    def __call__(self, image: Tensor, epoch: int, index: int) -> Tensor:
        """Return image number ``index`` as ``epoch`` shows it, uint8 ``(C, size, size)``."""
        if self.name == "none":
            return image
        functions: Dict[str, Callable[[Tensor, int, np.random.Generator], Tensor]] = {
            "crop": crop_and_flip,
            "resized": resized_crop_and_flip,
        }
        random = stream(AUGMENT, self.seed, epoch, index)
        return functions[self.name](image, self.size, random)


def centre_crop(image: Tensor, size: int, margin: float = 1.0) -> Tensor:
    """Resize the shorter side of an image to ``margin * size``, then crop ``(C, size, size)``.

    Of an image more than `LONGEST` times as long as wide the middle is taken before: what is
    resized is then no larger than that many squares.
    """
    short = round(size * margin)
    if image.shape[-2:] == (short, short) == (size, size):
        return image
    F = transforms().functional
    least = min(image.shape[-2:])
    if max(image.shape[-2:]) > LONGEST * least:
        image = F.center_crop(image, [min(side, LONGEST * least) for side in image.shape[-2:]])
    if min(image.shape[-2:]) != short:
        image = F.resize(image, [short], antialias=True)
    return F.center_crop(image, [size, size])
