"""Networks by name."""

from __future__ import annotations

from typing import Any, Dict, Optional

from ipu_proxynorm.errors import unknown_name
from models.resnet import BasicBlock, Bottleneck, ResNetV2

#: Arguments of each network, named as timm does. Those for 32x32 images have 6n + 2 layers.
MODELS: Dict[str, Dict[str, Any]] = {
    **{
        f"resnetv2_{6 * n + 2}": {"block": BasicBlock, "depths": [n, n, n], "width": 16}
        for n in (1, 2, 3, 5, 7, 9, 18)
    },
    **{
        f"resnetv2_{depth}": {"block": block, "depths": depths, "width": 64, "large_input": True}
        for depth, block, depths in (
            (18, BasicBlock, [2, 2, 2, 2]),
            (34, BasicBlock, [3, 4, 6, 3]),
            (50, Bottleneck, [3, 4, 6, 3]),
            (101, Bottleneck, [3, 4, 23, 3]),
            (152, Bottleneck, [3, 8, 36, 3]),
        )
    },
}


def create_model(
    name: str,
    norm: str = "gn4+pn",
    num_classes: int = 10,
    in_chans: int = 3,
    act_layer: str = "relu",
    width: Optional[int] = None,
) -> ResNetV2:
    """Return a network with freshly initialised weights.

    Args:
        name: one of :data:`MODELS`.
        norm: norm spec of every norm (see :func:`ipu_proxynorm.norm.create_norm_act`).
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        act_layer: activation behind every norm.
        width: channels of the first group of blocks; None: as published.

    Raises:
        ValueError: unknown name, norm spec or activation, or groups that do not divide a layer's
            channels; the message gives the nearest valid choice.
    """
    if name not in MODELS:
        raise unknown_name("model", name, list(MODELS))
    arguments = dict(MODELS[name])
    if width is not None:
        arguments["width"] = width
    return ResNetV2(
        norm=norm, num_classes=num_classes, in_chans=in_chans, act_layer=act_layer, **arguments
    )
