"""What ResNets of both generations have in common: groups of blocks, widths, published names."""

from __future__ import annotations

from typing import Callable, Dict, List, Sequence

from torch import nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models.layers import Network


class ResidualNetwork(Network):
    """A network whose blocks stand in groups ``layer1`` ..., each of half the resolution.

    Args:
        depths: blocks of each group.
    """

    def __init__(self, depths: Sequence[int]) -> None:
        super().__init__()
        self.depths = list(depths)

    @property
    def groups(self) -> List[str]:
        """Return the names of the groups."""
        return [f"layer{number}" for number in range(1, len(self.depths) + 1)]

    def blocks(self) -> List[str]:
        """Return the names of all blocks, in order."""
        return [
            f"{group}.{index}"
            for group, depth in zip(self.groups, self.depths)
            for index in range(depth)
        ]

    def add_groups(
        self, create: Callable[[int, int, int], nn.Module], expansion: int, width: int
    ) -> int:
        """Add all groups; return the channels of the last one.

        Args:
            create: makes a block of (input channels, width, stride).
            expansion: output channels of a block over its width.
            width: of the first group, and channels of what it reads; each group doubles it.
        """
        channels = width
        for number, (name, depth) in enumerate(zip(self.groups, self.depths)):
            blocks: List[nn.Module] = []
            for index in range(depth):
                stride = 2 if number > 0 and index == 0 else 1
                blocks.append(create(channels, width * 2**number, stride))
                channels = expansion * width * 2**number
            self.add_module(name, nn.Sequential(*blocks))
        return channels


def bottleneck_width(width: int, groups: int, base_width: int) -> int:
    """Return the channels of a bottleneck's 3x3 convolution.

    ``base_width`` is what each group has at a width of 64, and grows with the width: 32 groups of 4
    make 128 channels at width 64, 1024 at 512.

    Raises:
        UserError: the width leaves less than a channel for each group.
    """
    each = width * base_width // 64
    if each < 1:
        raise UserError(
            f"width={width}: leaves no channel for each of {groups} groups of {base_width} (at "
            f"width 64); expected {-(-64 // base_width)} or more"
        )
    return each * groups


def published_splits(
    depths: Sequence[int], blocks: Sequence[str], relus: Sequence[str], pool: str
) -> Dict[str, str]:
    """Return the names that Graphcore's configurations give to places of a ResNet, with ours.

    Args:
        depths: blocks of each group.
        blocks: our name of each block.
        relus: our name of what begins with the activation behind each block's addition.
        pool: our name of the average pooling.
    """
    places: List[str] = [
        f"{stage}/{unit}"
        for stage, depth in enumerate(depths, start=1)
        for unit in range(1, depth + 1)
    ]
    names: Dict[str, str] = {}
    for place, block, relu in zip(places, blocks, relus):
        stage, unit = place.split("/")
        names[f"stage{stage}/unit{unit}"] = block  # TensorFlow 1
        names[f"stage{stage}/unit{unit}/relu"] = relu
        names[f"b{stage}/{int(unit) - 1}/relu"] = relu  # TensorFlow 1, its ImageNet networks
        names[f"conv{int(stage) + 1}_block{unit}_out"] = relu  # TensorFlow 2, as Keras
        names[f"conv{int(stage) + 1}_block{unit}_post_addition_relu"] = relu  # its CIFAR networks
    return {**names, "reduce_mean": pool, "fc1": "fc"}
