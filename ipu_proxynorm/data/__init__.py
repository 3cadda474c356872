"""Images: datasets as uint8 tensors, and the host's side of the input pipeline."""

from ipu_proxynorm.data.augment import AUGMENTATIONS
from ipu_proxynorm.data.datasets import (
    DATASETS,
    DatasetSpec,
    create_data,
    dataset,
    described_data,
    pixel_statistics,
)
from ipu_proxynorm.data.digest import digest
from ipu_proxynorm.data.image_data import ImageData, Request, image_data
from ipu_proxynorm.data.image_set import IGNORED, ImageSet
from ipu_proxynorm.data.loader import (
    WORKERS_SHARE,
    PaddedDataset,
    training_loader,
    training_share,
    validation_loader,
)
from ipu_proxynorm.data.order import Share
from ipu_proxynorm.data.part import Part
from ipu_proxynorm.data.watch import DamageReport, DataError, watched

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "IGNORED",
    "WORKERS_SHARE",
    "DamageReport",
    "DataError",
    "DatasetSpec",
    "ImageData",
    "ImageSet",
    "PaddedDataset",
    "Part",
    "Request",
    "Share",
    "create_data",
    "dataset",
    "described_data",
    "digest",
    "image_data",
    "pixel_statistics",
    "training_loader",
    "training_share",
    "validation_loader",
    "watched",
]
