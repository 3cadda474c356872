"""The part of a data set's images that a run trains on and is validated on."""

from __future__ import annotations

import dataclasses
from typing import List, Optional, Sequence, Tuple

import torch

from ipu_proxynorm.data.image_set import Images, ListedImages, TensorImages
from ipu_proxynorm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Part:
    """How many of the training images a run takes, as many of each class.

    Attributes:
        train_images: the first of each class; None: all of them.
        held_out: of these, the last of each class validate in place of the validation images;
            None: none.
    """

    train_images: Optional[int] = None
    held_out: Optional[int] = None

    def of(self, images: Tuple[Images, Images], classes: int) -> Tuple[Images, Images]:
        """Return the images of training and validation.

        Args:
            images: all of training and of validation.
            classes: how many there are.

        Raises:
            UserError: they cannot be had as many of each class.
        """
        if self.train_images is None and self.held_out is None:
            return images
        training, validation = images
        by_class = numbers_by_class(labels_of(training), classes)
        if self.train_images is not None:
            count = each("data.train_images", self.train_images, by_class)
            by_class = [numbers[:count] for numbers in by_class]
        if self.held_out is not None:
            count = each("data.held_out", self.held_out, by_class)
            if any(count == len(numbers) for numbers in by_class):
                raise UserError(
                    f"data.held_out={self.held_out}: that leaves no image of a class to train on; "
                    f"hold out fewer than {min(map(len, by_class)) * classes}"
                )
            validation = chosen(training, joined([numbers[-count:] for numbers in by_class]))
            by_class = [numbers[:-count] for numbers in by_class]
        return chosen(training, joined(by_class)), validation


def labels_of(images: Images) -> List[int]:
    """Return the class of each image; none is read.

    Raises:
        UserError: the images are neither listed nor tensors, so that this is not known.
    """
    if isinstance(images, TensorImages):
        return [int(label) for label in images.labels]
    if isinstance(images, ListedImages):
        return images.listing.labels
    raise UserError(
        f"data.train_images or data.held_out: the classes of {type(images).__name__} are not known "
        f"before they are read; expected ListedImages or TensorImages; leave both keys out"
    )


def numbers_by_class(labels: Sequence[int], classes: int) -> List[List[int]]:
    """Return the numbers of each class's images, in order."""
    found: List[List[int]] = [[] for _ in range(classes)]
    for number, label in enumerate(labels):
        found[label].append(number)
    return found


def each(key: str, total: int, by_class: Sequence[Sequence[int]]) -> int:
    """Return how many images of each class make ``total``.

    Raises:
        UserError: it is no multiple of the classes, or a class has fewer.
    """
    count, rest = divmod(total, len(by_class))
    fewest = min(map(len, by_class))
    if rest or not 1 <= count <= fewest:
        raise UserError(
            f"{key}={total}: expected a multiple of the {len(by_class)} classes, at most "
            f"{fewest * len(by_class)} (the smallest class has {fewest} images)"
        )
    return count


def joined(by_class: Sequence[Sequence[int]]) -> List[int]:
    """Return all numbers in the order of the whole set."""
    return sorted(number for numbers in by_class for number in numbers)


def chosen(images: Images, numbers: Sequence[int]) -> Images:
    """Return the images of these numbers, of a set that `labels_of` knows."""
    if isinstance(images, ListedImages):
        return images.chosen(numbers)
    assert isinstance(images, TensorImages)
    index = torch.tensor(numbers)
    return TensorImages(images.images[index], images.labels[index])
