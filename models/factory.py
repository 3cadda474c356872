"""Networks by name: what each is made of, and which options it has."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Dict, List, Optional, Tuple, Type

from ipu_proxynorm.errors import UserError, unknown_name
from ipu_proxynorm.models.efficientnet import EfficientNet
from ipu_proxynorm.models.layers import Network
from ipu_proxynorm.models.random_net import RandomNet
from ipu_proxynorm.models.resnet import BasicBlock, Bottleneck, ResNet
from ipu_proxynorm.models.resnetv2 import PreActBasicBlock, PreActBottleneck, ResNetV2


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A published network.

    Attributes:
        network: its class.
        arguments: what the class is told; the rest can be chosen.
        resolution: height and width of the images it was published with, pixels.
        half: the resolution with about half as many pixels, where published.
        reduction: image size over the size of the last feature maps.
        options: what can be chosen beside norm, activation, classes and image channels.
    """

    network: Type[Network]
    arguments: Dict[str, Any]
    resolution: int
    reduction: int
    options: Tuple[str, ...]
    half: Optional[int] = None

    def shallow(self) -> Dict[str, Any]:
        """Return its class's arguments with the fewest blocks that leave some of each kind."""
        fewer = dict(self.arguments)
        if "depths" in fewer:
            first, *rest = fewer["depths"]
            fewer["depths"] = [min(first, 2), *([1] * len(rest))]
        else:
            fewer["depth"] = min(fewer["depth"], 0.3 if self.network is EfficientNet else 4)
        return fewer


#: What can be chosen of some networks beside norm, activation, classes and image channels; None:
#: as published.
OPTIONS: Dict[str, str] = {
    "norm_eps": "ε of every norm; None: 1e-5, in EfficientNet 1e-3",
    "width": "ResNets: channels of the first group of blocks; random networks: of every layer",
    "zero_init_last": "ResNets: let every residual branch start at zero; None: no",
    "group_dim": "EfficientNet: channels of each group of the grouped convolutions; None: 1",
    "expansion": "EfficientNet: channels within a block over those it reads; None: 6",
    "drop_path": "EfficientNet: rate at which the last block's branch is dropped; None: 0.2",
    "dropout": "EfficientNet: rate before the classifier",
    "proxy_scale_in_gate": "EfficientNet: on an IPU, scale of Proxy Norm within the gate of "
    "squeeze-and-excite; None: yes",
    "padding": "EfficientNet: of strided convolutions: symmetric, or same, TensorFlow's; None: "
    "symmetric",
    "proxy_method": "how Proxy Norm's moments are taken: exact, or sampled, over 200 quantiles; "
    "None: exact",
    "proxy_scale": "EfficientNet: full, or published: Proxy Norm's scale left out of the mean that "
    "squeeze-and-excite reads, and of the head; None: full",
}
_RESNET_OPTIONS = ("width", "norm_eps", "zero_init_last", "proxy_method")
_EFFICIENTNET_OPTIONS = (
    "norm_eps",
    "group_dim",
    "expansion",
    "drop_path",
    "dropout",
    "proxy_scale_in_gate",
    "padding",
    "proxy_method",
    "proxy_scale",
)
# B0 to B7: factors on width and depth, dropout, resolution, and half resolution (README of
# github.com/graphcore-research/making-efficientnet-more-efficient).
_EFFICIENTNETS = (
    (1.0, 1.0, 0.2, 224, 160),
    (1.0, 1.1, 0.2, 240, 176),
    (1.1, 1.2, 0.3, 260, 192),
    (1.2, 1.4, 0.3, 300, 204),
    (1.4, 1.8, 0.4, 380, 252),
    (1.6, 2.2, 0.4, 456, 328),
    (1.8, 2.6, 0.5, 528, None),
    (2.0, 3.1, 0.5, 600, None),
)


def _small(network: Type[Network], block: Any, n: int) -> Architecture:
    arguments = {"block": block, "depths": [n, n, n], "width": 16}
    return Architecture(network, arguments, 32, 4, _RESNET_OPTIONS)


def _large(network: Type[Network], block: Any, depths: List[int], **more: int) -> Architecture:
    arguments = {"block": block, "depths": depths, "width": 64, "large_input": True, **more}
    return Architecture(network, arguments, 224, 32, _RESNET_OPTIONS)


def _architectures() -> Dict[str, Architecture]:
    models: Dict[str, Architecture] = {}
    for prefix, network, basic, bottleneck in (
        ("resnetv2_", ResNetV2, PreActBasicBlock, PreActBottleneck),
        ("resnet", ResNet, BasicBlock, Bottleneck),
    ):
        for n in (1, 2, 3, 5, 7, 9, 18):  # 6n + 2 layers, for 32x32 images
            models[f"{prefix}{6 * n + 2}"] = _small(network, basic, n)
        for depth, block, depths in (
            (18, basic, [2, 2, 2, 2]),
            (34, basic, [3, 4, 6, 3]),
            (50, bottleneck, [3, 4, 6, 3]),
            (101, bottleneck, [3, 4, 23, 3]),
            (152, bottleneck, [3, 8, 36, 3]),
        ):
            models[f"{prefix}{depth}"] = _large(network, block, depths)
    for prefix, network, block in (
        ("resnextv2_", ResNetV2, PreActBottleneck),
        ("resnext", ResNet, Bottleneck),
    ):
        for depth, depths in ((50, [3, 4, 6, 3]), (101, [3, 4, 23, 3])):
            models[f"{prefix}{depth}_32x4d"] = _large(
                network, block, depths, groups=32, base_width=4
            )
    for number, (width, depth_factor, dropout, resolution, half) in enumerate(_EFFICIENTNETS):
        arguments = {"width": width, "depth": depth_factor, "dropout": dropout}
        models[f"efficientnet_b{number}"] = Architecture(
            EfficientNet, arguments, resolution, 32, _EFFICIENTNET_OPTIONS, half
        )
    for depth in (50, 100, 200):  # the Proxy Norm paper's: a chain without shortcuts
        models[f"random_{depth}"] = Architecture(RandomNet, {"depth": depth}, 32, 1, ("width",))
    return models


#: Every network by its name, as torchvision or timm has it where they have the network.
MODELS: Dict[str, Architecture] = _architectures()


def architecture(name: str) -> Architecture:
    """Return what the named network is made of.

    Raises:
        UserError: the name is unknown; names the nearest.
    """
    if name in MODELS:
        return MODELS[name]
    family = [known for known in MODELS if _pattern(known) == _pattern(name)]
    family = family or [known for known in MODELS if name and known.startswith(name)]
    if not family:
        raise unknown_name("model", name, list(MODELS))
    wanted = _numbers(name)
    if not wanted:
        raise UserError(f"model {name!r} is unknown: expected one of {', '.join(family)}")
    nearest = min(family, key=lambda known: [abs(a - b) for a, b in zip(_numbers(known), wanted)])
    raise UserError(
        f"model {name!r} is unknown: nearest is {nearest!r}; of its kind there are "
        f"{', '.join(family)}"
    )


def _pattern(name: str) -> str:
    return re.sub("[0-9]+", "#", name)


def _numbers(name: str) -> List[int]:
    return [int(number) for number in re.findall("[0-9]+", name)]


def create_model(
    name: str,
    norm: str = "gn4+pn",
    num_classes: int = 10,
    in_chans: int = 3,
    act_layer: Optional[str] = None,
    *,
    shallow: bool = False,
    **options: Any,
) -> Network:
    """Return a network with freshly initialised weights; None stands for what was published.

    Args:
        name: one of :data:`MODELS`.
        norm: norm spec of every norm (see :func:`ipu_proxynorm.norm.create_norm_act`).
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        act_layer: activation; None: ReLU, in EfficientNet SiLU.
        shallow: with as few blocks as leave some of each kind, to try things with.
        options: of :data:`OPTIONS`, those that the network has (``MODELS[name].options``).

    Raises:
        ValueError: unknown name, norm spec or activation, an option that the network does not
            have, or groups that do not divide a layer's channels; the message gives the nearest
            valid choice.
    """
    known = architecture(name)
    chosen = {key: value for key, value in options.items() if value is not None}
    for key, value in chosen.items():
        if key not in known.options:
            raise UserError(
                f"{key}={value}: {name} has no such option; it has {', '.join(known.options)}; "
                f"leave {key} out"
            )
    if act_layer is not None:
        chosen["act_layer"] = act_layer
    arguments = {**(known.shallow() if shallow else known.arguments), **chosen}
    return known.network(norm=norm, num_classes=num_classes, in_chans=in_chans, **arguments)


def default_resolution(name: str, half: bool = False) -> int:
    """Return height and width of the images that a network was published with, pixels.

    Args:
        name: one of :data:`MODELS`.
        half: the resolution with about half as many pixels, of EfficientNet B0 to B5.

    Raises:
        UserError: the name is unknown, or the network has no published half resolution.
    """
    known = architecture(name)
    if not half:
        return known.resolution
    if known.half is None:
        having = [f"{key} {entry.half}" for key, entry in MODELS.items() if entry.half]
        raise UserError(
            f"{name} has no published half resolution; expected one of: {', '.join(having)}; "
            f"its own resolution is {known.resolution}"
        )
    return known.half


def check_resolution(name: str, size: int) -> None:
    """Refuse images that a network would reduce to less than a pixel.

    Raises:
        UserError: the name is unknown, or the images are too small.
    """
    known = architecture(name)
    if size < known.reduction:
        raise UserError(
            f"images of {size}x{size} are too small for {name}, which reduces them by "
            f"{known.reduction}; expected {known.reduction} or more pixels, as published "
            f"{known.resolution}"
        )
