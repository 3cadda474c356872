"""Two sets of labelled images, made ready as a run asks for them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, Optional, Sequence, Sized, Tuple

from torch.utils.data import Dataset

from ipu_proxynorm.data.augment import Augmentation, centre_crop
from ipu_proxynorm.data.image_set import CachedImages, Images, ImageSet
from ipu_proxynorm.data.part import Part
from ipu_proxynorm.errors import UserError

#: Mean and standard deviation of ImageNet's training pixels, in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Two sets of labelled images, and how the device brings their pixels to unit scale.

    Every sample is an image, uint8 ``(channels, *image_size)``, and a label, an int below
    ``num_classes``; validation images may be of another size. ``mean`` and ``std`` are per channel,
    of pixels scaled to [0, 1]. ``classes`` are their names, where they have some. Validation images
    are of ``eval_size``, cropped from the middle after their shorter side became ``resize``.
    """

    name: str
    train: Dataset[Any]
    validation: Dataset[Any]
    num_classes: int
    channels: int
    image_size: Tuple[int, int]
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    classes: Tuple[str, ...] = ()
    eval_size: int = 0
    resize: int = 0

    def sizes(self) -> Tuple[int, int]:
        """Return the number of training and of validation images."""
        return size_of(self.train), size_of(self.validation)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a run asks of a dataset; None: the dataset's own.

    Args:
        path: where the images are, for datasets that do not come with a package.
        image_size: height and width of training images, pixels.
        eval_image_size: the size of validation images; None: as ``image_size``.
        augment: one of :data:`AUGMENTATIONS`.
        seed: the seed of the augmentation.
        part: how many of the images; None: all.
        label: where a sample's class is found, for datasets that keep it under a name.
    """

    path: Optional[str] = None
    image_size: Optional[int] = None
    eval_image_size: Optional[int] = None
    augment: Optional[str] = None
    seed: int = 0
    part: Optional[Part] = None
    label: Optional[str] = None

    def place(self, name: str, expected: str) -> Path:
        """Return the path, of the dataset ``name``, at which something is ``expected``.

        Raises:
            UserError: there is none, or nothing is there.
        """
        if self.path is None:
            raise UserError(f"data.path is not set: {name} expects {expected}")
        path = Path(self.path)
        if not path.exists():
            raise UserError(
                f"data.path={self.path!r}: no such file or folder; {name} expects {expected}"
            )
        return path

    def sizes(self, own: int) -> Tuple[int, int]:
        """Return the sizes of training and validation images, where the dataset's is ``own``."""
        size = self.image_size or own
        return size, self.eval_image_size or size


def size_of(dataset: Dataset[Any]) -> int:
    """Return the number of samples of a map-style dataset."""
    assert isinstance(dataset, Sized)
    return len(dataset)


def image_data(
    name: str,
    images: Tuple[Images, Images],
    classes: int,
    request: Request,
    size: int,
    augment: str,
    statistics: Tuple[Sequence[float], Sequence[float]],
    strangers: Tuple[Sequence[str], Sequence[str]] = ((), ()),
    names: Sequence[str] = (),
) -> ImageData:
    """Return the data of training and validation ``images`` as ``request`` asks.

    Args:
        name: the name of the dataset.
        images: the images of training and validation.
        classes: how many.
        request: what the run asks for.
        size: the dataset's own height and width.
        augment: the dataset's own augmentation.
        statistics: per channel mean and standard deviation of pixels in [0, 1].
        strangers: files that are no images, in each part.
        names: of the classes.
    """
    training_size, size = request.sizes(size)
    augmentation = Augmentation(request.augment or augment, training_size, request.seed)
    channels = len(statistics[0])
    training, validation = (request.part or Part()).of(images, classes)
    if augmentation.name != "resized":
        training = prepared(training, training_size, channels)
        margin = 1.0
    else:
        margin = 8 / 7  # 256 for 224, as everywhere
    return ImageData(
        name=name,
        train=ImageSet(
            training,
            (channels, training_size, training_size),
            None if augmentation.name == "none" else augmentation,
            substitute=True,
            strangers=tuple(strangers[0]),
        ),
        validation=ImageSet(
            prepared(validation, size, channels, margin),
            (channels, size, size),
            strangers=tuple(strangers[1]),
        ),
        num_classes=classes,
        channels=channels,
        image_size=(training_size, training_size),
        mean=tuple(statistics[0]),
        std=tuple(statistics[1]),
        classes=tuple(names),
        eval_size=size,
        resize=round(size * margin),
    )


def prepared(images: Images, size: int, channels: int, margin: float = 1.0) -> CachedImages:
    """Return images cropped at the centre to ``size``, kept in memory where they are small."""
    crop = functools.partial(centre_crop, size=size, margin=margin)
    return CachedImages(images, crop, (channels, size, size))
