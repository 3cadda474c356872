"""ResNet v2: pre-activation residual networks for 32x32 and for 224x224 images.

He, Zhang, Ren and Sun, *Identity Mappings in Deep Residual Networks*, 2016 (arXiv 1603.05027).
Every convolution but the first reads the output of a norm-and-activation unit, so Proxy Norm has
its place behind every norm of the network.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import List, NamedTuple, Optional, Sequence, Type, Union

import torch
from torch import Tensor, nn

from ipu_proxynorm.norm import create_conv, create_norm_act


class Layers(NamedTuple):
    """How a network builds its layers: the norm spec and the activation that all of them share."""

    norm: str
    act_layer: str

    def norm_act(self, channels: int) -> nn.Module:
        """Return norm and activation as one unit."""
        return create_norm_act(self.norm, channels, self.act_layer)

    def conv(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
        """Return a convolution without bias that keeps height and width, but for the stride."""
        return create_conv(
            self.norm, inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
        )

    def projection(self, inputs: int, outputs: int, stride: int) -> Optional[nn.Conv2d]:
        """Return the shortcut's 1x1 convolution where the shape changes; None: the identity."""
        return None if stride == 1 and inputs == outputs else self.conv(inputs, outputs, 1, stride)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: ``(N, inputs, H, W)`` to ``(N, width, H / stride, W / stride)``.

    The first unit serves both paths: a shortcut that changes the shape reads its output.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        self.norm1 = layers.norm_act(inputs)
        self.conv1 = layers.conv(inputs, width, 3, stride)
        self.norm2 = layers.norm_act(width)
        self.conv2 = layers.conv(width, width, 3)
        self.shortcut = layers.projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of shortcut and residual branch."""
        z = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(z)
        return shortcut + self.conv2(self.norm2(self.conv1(z)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolutions, the last to four times the width.

    ``(N, inputs, H, W)`` to ``(N, 4 * width, H / stride, W / stride)``; else as
    :class:`BasicBlock`.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, layers: Layers) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.norm1 = layers.norm_act(inputs)
        self.conv1 = layers.conv(inputs, width, 1)
        self.norm2 = layers.norm_act(width)
        self.conv2 = layers.conv(width, width, 3, stride)
        self.norm3 = layers.norm_act(width)
        self.conv3 = layers.conv(width, outputs, 1)
        self.shortcut = layers.projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of shortcut and residual branch."""
        z = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(z)
        return shortcut + self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(z)))))


class ResNetV2(nn.Module):
    """Stem, groups ``layer1`` ... of pre-activation blocks, norm, average pooling, classifier.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: blocks of each group; each group after the first halves the resolution.
        norm: norm spec of every norm, e.g. ``ln+pn``.
        act_layer: activation behind every norm.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        width: channels of the first group (before a bottleneck's expansion); each group
            doubles them.
        large_input: the stem for 224x224 images, 7x7 of stride 2 and max-pooling, instead of 3x3.

    Raises:
        ValueError: the norm spec is unknown, or its groups do not divide the channels.
    """

    def __init__(
        self,
        block: Union[Type[BasicBlock], Type[Bottleneck]],
        depths: Sequence[int],
        norm: str = "gn4+pn",
        act_layer: str = "relu",
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 16,
        large_input: bool = False,
    ) -> None:
        super().__init__()
        layers = Layers(norm, act_layer)
        if large_input:
            self.stem: nn.Module = nn.Sequential(
                OrderedDict(
                    conv=layers.conv(in_chans, width, 7, 2), pool=nn.MaxPool2d(3, 2, padding=1)
                )
            )
        else:
            self.stem = layers.conv(in_chans, width, 3)
        channels = width
        self.groups = [f"layer{number}" for number in range(1, len(depths) + 1)]
        for number, (name, depth) in enumerate(zip(self.groups, depths)):
            blocks: List[nn.Module] = []
            for index in range(depth):
                stride = 2 if number > 0 and index == 0 else 1
                blocks.append(block(channels, width * 2**number, stride, layers))
                channels = block.expansion * width * 2**number
            self.add_module(name, nn.Sequential(*blocks))
        self.norm = layers.norm_act(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He-initialise the convolutions (fan out); everything else starts as its layer says."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def split_points(self) -> List[str]:
        """Return, in order, the layers at which exactly one tensor crosses: pipeline boundaries."""
        blocks = [
            f"{group}.{index}"
            for group in self.groups
            for index in range(len(self.get_submodule(group)))  # type: ignore[arg-type]
        ]
        return [*blocks, "norm", "pool", "fc"]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, in_chans, H, W)``."""
        x = self.stem(x)
        for group in self.groups:
            x = self.get_submodule(group)(x)
        return self.fc(torch.flatten(self.pool(self.norm(x)), 1))
