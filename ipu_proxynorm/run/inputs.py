"""What a run's network is given and what it answers: with it, weights predict by themselves."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Mapping, Tuple

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.data import ImageData, dataset, pixel_statistics
from ipu_proxynorm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """How an image becomes the input of a network, and what its outputs stand for.

    Attributes:
        classes: names, in the order of the outputs.
        channels: of an image; 1 is grey.
        size: height and width of the input, pixels.
        resize: to which the shorter side of an image is resized before its middle is cropped.
        mean: per channel, of pixels in [0, 1]; what is subtracted.
        std: per channel; what is divided by then.
    """

    classes: Tuple[str, ...]
    channels: int
    size: int
    resize: int
    mean: Tuple[float, ...]
    std: Tuple[float, ...]

    @classmethod
    def of(cls, data: ImageData) -> Inputs:
        """Return those of a run's validation images."""
        size = data.eval_size or data.image_size[0]
        names = data.classes or tuple(map(str, range(data.num_classes)))
        return cls(names, data.channels, size, data.resize or size, data.mean, data.std)

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> Inputs:
        """Return what `values` wrote, from a checkpoint or from JSON.

        Raises:
            UserError: it is something else.
        """
        try:
            return cls(
                classes=tuple(map(str, values["classes"])),
                channels=int(values["channels"]),
                size=int(values["size"]),
                resize=int(values["resize"]),
                mean=tuple(map(float, values["mean"])),
                std=tuple(map(float, values["std"])),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the description of a network's inputs is wrong ({error})") from error

    def values(self) -> Mapping[str, Any]:
        """Return plain values, as a checkpoint keeps them."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def json(self) -> str:
        """Return JSON, as files of weights and exported networks keep it."""
        text = json.dumps(self.values(), ensure_ascii=False)
        # Classes are named after folders, whose names need not be UTF-8.
        return text.encode(errors="backslashreplace").decode()


def undescribed(config: RunConfig, classes: int, channels: int, size: int) -> Inputs:
    """Return the inputs of a network whose checkpoint is older than their description.

    Args:
        config: the run's configuration.
        classes: how many outputs there are; their names are numbers.
        channels: of an image.
        size: of training images, pixels.
    """
    mean, std = pixel_statistics(config.data.name, config.data.image_size)
    names = tuple(map(str, range(classes)))
    size = config.data.eval_image_size or size
    augment = config.data.augment or ("resized" if dataset(config.data.name).is_folder else "")
    resize = round(size * 8 / 7) if augment == "resized" else size
    return Inputs(names, channels, size, resize, tuple(mean), tuple(std))
