"""Datasets by name: uint8 images ``(C, H, W)`` with integer labels, split in two."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Callable, Dict, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch.utils.data import TensorDataset

from ipu_proxynorm.data.augment import AUGMENTATIONS, centre_crop, stream
from ipu_proxynorm.data.files import Store, find_part, list_images
from ipu_proxynorm.data.image_data import IMAGENET, ImageData, Request, image_data
from ipu_proxynorm.data.image_set import FileImages, TensorImages
from ipu_proxynorm.data.libraries import library
from ipu_proxynorm.data.part import Part
from ipu_proxynorm.data.shards import webdataset
from ipu_proxynorm.data.tables import huggingface
from ipu_proxynorm.errors import UserError, unknown_name

#: Means and standard deviations of the training pixels of each.
CIFAR = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
NOISE = ((0.5,) * 3, (0.2887,) * 3)  # of a uniform distribution


def digits(request: Request) -> ImageData:
    """Return scikit-learn's handwritten digits: 1,797 scans of 8x8, every fifth held out (360).

    Source: E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998.
    """
    _refuse_path("digits", request, "come with scikit-learn")
    bundle = library("sklearn.datasets").load_digits()
    pixels = np.rint(bundle.images * (255 / 16)).astype(np.uint8)  # 0..16 in the source
    images = torch.from_numpy(pixels).unsqueeze(1)  # (N, 1, 8, 8)
    labels = torch.from_numpy(bundle.target).long()
    held_out = torch.arange(len(labels)) % 5 == 0
    parts = (
        TensorImages(images[~held_out], labels[~held_out]),
        TensorImages(images[held_out], labels[held_out]),
    )
    size = request.image_size or 8
    resized = centre_crop(images[~held_out], size).double() / 255
    statistics = ((float(resized.mean()),), (float(resized.std()),))
    return image_data("digits", parts, 10, request, 8, "none", statistics)


def image_folder(request: Request) -> ImageData:
    """Return RGB images of ``path/train/<class>/`` and ``path/val/<class>/``, 224x224 by default.

    ``path`` is a folder or a zip archive; ``test/`` stands for ``val/``. Crops as in torchvision's
    ImageNet recipes: training images are random resized crops, flipped at random; validation images
    are resized to 8/7 of the crop and cropped at the centre.
    """
    return _files("image_folder", request, 224, "resized", IMAGENET)


def cifar10(request: Request) -> ImageData:
    """Return CIFAR-10: 50,000 and 10,000 images of 32x32 in 10 classes; see :func:`_cifar`.

    Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009.
    """
    return _cifar("cifar10", "CIFAR10", request)


def cifar100(request: Request) -> ImageData:
    """Return CIFAR-100: 50,000 and 10,000 images of 32x32 in 100 classes; see :func:`_cifar`."""
    return _cifar("cifar100", "CIFAR100", request)


def _cifar(name: str, class_name: str, request: Request) -> ImageData:
    """Return CIFAR from torchvision's folder, or from image files as :func:`image_folder` reads."""
    dataset = getattr(library("torchvision.datasets"), class_name)
    path = _path(name, request)
    if not (path / dataset.base_folder).is_dir():
        if path.exists() and any(Store(str(path)).has(part) for part in ("train", "val", "test")):
            return _files(name, request, 32, "crop", CIFAR[name])
        raise UserError(
            f"data.path={str(path)!r}: no CIFAR there; expected a folder with "
            f'{dataset.base_folder}/ (python -c "import torchvision; torchvision.datasets.'
            f'{class_name}(PATH, download=True)" makes it) or a folder or zip archive with '
            f"train/<class>/ and test/<class>/"
        )
    parts = []
    for train in (True, False):
        try:
            part = dataset(str(path), train=train)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data.path={str(path)!r}: {dataset.base_folder}/ cannot be read ({error}); "
                f"download it again"
            ) from error
        pixels = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        parts.append(TensorImages(pixels, torch.tensor(part.targets)))
    classes = 10 if name == "cifar10" else 100
    images = (parts[0], parts[1])
    names = tuple(part.classes)
    return image_data(name, images, classes, request, 32, "crop", CIFAR[name], names=names)


def _files(
    name: str,
    request: Request,
    size: int,
    augment: str,
    statistics: Tuple[Sequence[float], Sequence[float]],
) -> ImageData:
    """Return the image files below the path asked for."""
    path = _path(name, request)
    store = Store(str(path))
    if not path.exists():
        raise UserError(
            f"data.path={str(path)!r}: no such folder or zip archive; expected train/<class>/ and "
            f"val/<class>/ with images below data.path"
        )
    listings = [
        list_images(store, find_part(store, parts)) for parts in (("train",), ("val", "test"))
    ]
    train, validation = listings
    if train.classes != validation.classes:
        differing = sorted(set(train.classes) ^ set(validation.classes))
        raise UserError(
            f"data.path={str(path)!r}: train/ and val/ must hold the same classes; only one of "
            f"them holds {', '.join(differing[:5])}"
        )
    images = (FileImages(store, train), FileImages(store, validation))
    strangers = (train.strangers, validation.strangers)
    return image_data(
        name,
        images,
        len(train.classes),
        request,
        size,
        augment,
        statistics,
        strangers,
        train.classes,
    )


def synthetic(request: Request) -> ImageData:
    """Return 1,024 and 256 RGB images of noise in 10 classes, 32x32 by default: to take times."""
    _refuse_path("synthetic", request, "are drawn")
    size, eval_size = request.sizes(32)
    random = stream(2, request.seed)

    def draw(count: int, size: int) -> TensorImages:
        pixels = random.integers(0, 256, (count, 3, size, size), dtype=np.uint8)
        return TensorImages(torch.from_numpy(pixels), torch.arange(count) % 10)

    return image_data(
        "synthetic", (draw(1024, size), draw(256, eval_size)), 10, request, 32, "none", NOISE
    )


def _path(name: str, request: Request) -> Path:
    if request.path is None:
        raise UserError(
            f"data.path is not set: {name} expects a folder or zip archive with train/<class>/ and "
            f"val/<class>/"
        )
    return Path(request.path)


def _refuse_path(name: str, request: Request, why: str) -> None:
    if request.path is not None:
        raise UserError(f"data.path={request.path!r}: {name} {why}; leave data.path out")


Statistics = Tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What is known about a dataset, whether its images are there or not.

    Attributes:
        load: returns the data that a run asks for.
        num_classes: number of classes; ImageNet's for an `image_folder` that does not exist.
        channels: channels of an image.
        size: height and width of its images, pixels.
        statistics: mean and standard deviation per channel of training pixels in [0, 1], or a
            function that gives them for images of a height and width (None: ``size``).
        on_disk: whether the user brings the images.
        is_folder: a folder of the user's images: classes are counted at ``data.path``, and images
            without ``data.image_size`` take the network's.
        has_labels: classes stand beside the images, under a name: ``data.label``.
    """

    load: Callable[[Request], ImageData]
    num_classes: int
    channels: int
    size: int
    statistics: Union[Statistics, Callable[[Optional[int]], Statistics]]
    on_disk: bool = False
    is_folder: bool = False
    has_labels: bool = False


def _digit_statistics(size: Optional[int]) -> Statistics:
    data = digits(Request(image_size=size))
    return data.mean, data.std


#: Every dataset by the name that ``data.name`` gives it. One of your own: ``DATASETS[name] = ...``.
DATASETS: Dict[str, DatasetSpec] = {
    "digits": DatasetSpec(digits, 10, 1, 8, _digit_statistics),
    "cifar10": DatasetSpec(cifar10, 10, 3, 32, CIFAR["cifar10"], on_disk=True),
    "cifar100": DatasetSpec(cifar100, 100, 3, 32, CIFAR["cifar100"], on_disk=True),
    "image_folder": DatasetSpec(image_folder, 1000, 3, 224, IMAGENET, on_disk=True, is_folder=True),
    "webdataset": DatasetSpec(webdataset, 1000, 3, 224, IMAGENET, True, True, True),
    "huggingface": DatasetSpec(huggingface, 1000, 3, 224, IMAGENET, True, True, True),
    "synthetic": DatasetSpec(synthetic, 10, 3, 32, NOISE),
}


def dataset(name: str) -> DatasetSpec:
    """Return what is known of a dataset.

    Raises:
        UserError: there is none of that name.
    """
    if name not in DATASETS:
        raise unknown_name("data.name: dataset", name, sorted(DATASETS))
    return DATASETS[name]


def described_data(
    name: str, path: Optional[str], size: Optional[int], label: Optional[str] = None
) -> ImageData:
    """Return the sizes of a dataset's images, without images.

    Of a folder that is there, the classes are counted; of one that is not, ImageNet's are taken.

    Raises:
        UserError: there is no such dataset.
    """
    known = dataset(name)
    classes = known.num_classes
    if known.is_folder and path is not None and Path(path).exists():
        classes = create_data(name, path, size, label=label).num_classes
    nothing = TensorDataset(torch.empty(0))
    pixels = (size or known.size,) * 2
    middle = (0.5,) * known.channels
    return ImageData(name, nothing, nothing, classes, known.channels, pixels, middle, middle)


def create_data(
    name: str,
    path: Optional[str] = None,
    image_size: Optional[int] = None,
    eval_image_size: Optional[int] = None,
    augment: Optional[str] = None,
    seed: int = 0,
    part: Optional[Part] = None,
    label: Optional[str] = None,
) -> ImageData:
    """Return the named dataset.

    Args:
        name: one of :data:`DATASETS`.
        path: where the images are, for datasets that do not come with a package.
        image_size: height and width in pixels; None: the dataset's own.
        eval_image_size: the size of validation images; None: as ``image_size``.
        augment: one of :data:`AUGMENTATIONS`; None: the dataset's own.
        seed: the seed of the augmentation; not of the order, which the loader draws.
        part: how many of the images; None: all.
        label: where a sample's class is found, for datasets that keep it under a name.

    Raises:
        UserError: the name is unknown, the path is not what the dataset needs, or it has no such
            part.
    """
    known = dataset(name)
    if augment is not None and augment not in AUGMENTATIONS:
        raise unknown_name("data.augment:", augment, AUGMENTATIONS)
    if label is not None and not known.has_labels:
        named = " and ".join(name for name, spec in DATASETS.items() if spec.has_labels)
        raise UserError(f"data.label={label}: {name} has none; it is of {named}; leave it out")
    return known.load(Request(path, image_size, eval_image_size, augment, seed, part, label))


def pixel_statistics(name: str, image_size: Optional[int] = None) -> Statistics:
    """Return mean and standard deviation per channel that a dataset's pixels, in [0, 1], get.

    The images themselves need not be there.

    Raises:
        UserError: the name is unknown.
    """
    known = dataset(name).statistics
    return known(image_size) if callable(known) else known
