"""The network that a configuration names, for the images that it will see."""

from __future__ import annotations

import dataclasses
from typing import Tuple

from ipu_proxynorm.config import ModelConfig
from ipu_proxynorm.errors import blame
from ipu_proxynorm.models import Network, check_resolution, create_model
from ipu_proxynorm.norm import GroupNormAct


def create_network(
    config: ModelConfig,
    num_classes: int,
    channels: int,
    image_size: Tuple[int, int],
    shallow: bool = False,
) -> Network:
    """Return the network of ``config``, freshly initialised.

    Args:
        config: the section ``model`` of a run.
        num_classes: outputs of the classifier.
        channels: the channels of the images.
        image_size: their height and width, pixels.
        shallow: with as few blocks as leave some of each kind, to try things with.

    Raises:
        UserError: a name is unknown, the groups do not divide the channels, the network does not
            have an option that is set, or the images are too small for it.
    """
    options = dataclasses.asdict(config)
    name, norm, activation = (options.pop(key) for key in ("name", "norm", "activation"))
    grouping = options.pop("channel_grouping")
    with blame("model", f"({name}, norm={norm})"):
        model = create_model(
            name, norm, num_classes, channels, activation, shallow=shallow, **options
        )
    for layer in model.modules():
        if isinstance(layer, GroupNormAct):
            layer.channel_grouping = grouping
    with blame("data.image_size", min(image_size)):
        check_resolution(name, min(image_size))
    return model
