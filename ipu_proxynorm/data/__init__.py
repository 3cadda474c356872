"""Images: datasets as uint8 tensors, and the host's side of the input pipeline."""

from ipu_proxynorm.data.datasets import DATASETS, ImageData, create_data
from ipu_proxynorm.data.loader import IGNORED, PaddedDataset, training_loader, validation_loader

__all__ = [
    "DATASETS",
    "IGNORED",
    "ImageData",
    "PaddedDataset",
    "create_data",
    "training_loader",
    "validation_loader",
]
