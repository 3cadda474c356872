"""ResNet v2 and ResNeXt v2: pre-activation residual networks for 32x32 and for 224x224 images.

He, Zhang, Ren and Sun, *Identity Mappings in Deep Residual Networks*, 2016 (arXiv 1603.05027);
Xie et al., *Aggregated Residual Transformations for Deep Neural Networks*, 2017 (arXiv 1611.05431).
Every convolution but the first reads the output of a norm-and-activation unit, so Proxy Norm has
its place behind every norm of the network.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Dict, List, Optional, Sequence, Type, Union

import torch
from torch import Tensor, nn

from ipu_proxynorm.models.layers import Layers, MeanPool, initialize_convolutions, zero_branch
from ipu_proxynorm.models.residual import ResidualNetwork, bottleneck_width, published_splits
from ipu_proxynorm.norm import Linear, hand_on_to


def projection(inputs: int, outputs: int, stride: int, layers: Layers) -> Optional[nn.Conv2d]:
    """Return the shortcut's 1x1 convolution where the shape changes; None: the identity."""
    if stride == 1 and inputs == outputs:
        return None
    return layers.conv(inputs, outputs, 1, stride)


class PreActBasicBlock(nn.Module):
    """Two 3x3 convolutions: ``(N, inputs, H, W)`` to ``(N, width, H / stride, W / stride)``.

    The first unit serves both paths: a shortcut that changes the shape reads its output.
    """

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, layers: Layers, groups: int, base_width: int
    ) -> None:
        super().__init__()
        self.norm1 = layers.norm_act(inputs)
        self.conv1 = layers.conv(inputs, width, 3, stride)
        self.norm2 = layers.norm_act(width)
        self.conv2 = layers.conv(width, width, 3)
        self.shortcut = projection(inputs, width, stride, layers)
        readers = [self.conv1] if self.shortcut is None else [self.conv1, self.shortcut]
        hand_on_to(self.norm1, *readers)
        hand_on_to(self.norm2, self.conv2)

    @property
    def last_conv(self) -> nn.Conv2d:
        """Return the convolution that the residual branch ends in."""
        return self.conv2

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of shortcut and residual branch."""
        z = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(z)
        return shortcut + self.conv2(self.norm2(self.conv1(z)))


class PreActBottleneck(nn.Module):
    """1x1, 3x3 (strided, in ResNeXt grouped) and 1x1 convolutions, the last to 4 x width.

    ``(N, inputs, H, W)`` to ``(N, 4 * width, H / stride, W / stride)``; else as
    :class:`PreActBasicBlock`.
    """

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, layers: Layers, groups: int, base_width: int
    ) -> None:
        super().__init__()
        inner, outputs = bottleneck_width(width, groups, base_width), self.expansion * width
        self.norm1 = layers.norm_act(inputs)
        self.conv1 = layers.conv(inputs, inner, 1)
        self.norm2 = layers.norm_act(inner)
        self.conv2 = layers.conv(inner, inner, 3, stride, groups)
        self.norm3 = layers.norm_act(inner)
        self.conv3 = layers.conv(inner, outputs, 1)
        self.shortcut = projection(inputs, outputs, stride, layers)
        readers = [self.conv1] if self.shortcut is None else [self.conv1, self.shortcut]
        hand_on_to(self.norm1, *readers)
        hand_on_to(self.norm2, self.conv2)
        hand_on_to(self.norm3, self.conv3)

    @property
    def last_conv(self) -> nn.Conv2d:
        """Return the convolution that the residual branch ends in."""
        return self.conv3

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of shortcut and residual branch."""
        z = self.norm1(x)
        shortcut = x if self.shortcut is None else self.shortcut(z)
        return shortcut + self.conv3(self.norm3(self.conv2(self.norm2(self.conv1(z)))))


class ResNetV2(ResidualNetwork):
    """Stem, groups ``layer1`` ... of pre-activation blocks, norm, average pooling, classifier.

    Args:
        block: :class:`PreActBasicBlock` or :class:`PreActBottleneck`.
        depths: blocks of each group; each group after the first halves the resolution.
        norm: norm spec of every norm, e.g. ``ln+pn``.
        act_layer: activation behind every norm.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        width: channels of the first group (before a bottleneck's expansion); each group
            doubles them.
        large_input: the stem for 224x224 images, 7x7 of stride 2 and max-pooling, instead of 3x3.
        groups: the groups of a bottleneck's 3x3 convolution; more than one make a ResNeXt.
        base_width: channels of each of them, at width 64.
        norm_eps: ε of every norm.
        zero_init_last: let every residual branch start at zero. It ends in a convolution here,
            whose weights are then zero.
        proxy_method: how Proxy Norm's moments are taken: ``exact`` or ``sampled``.

    Raises:
        ValueError: the norm spec is unknown, or its groups do not divide the channels.
    """

    def __init__(
        self,
        block: Union[Type[PreActBasicBlock], Type[PreActBottleneck]],
        depths: Sequence[int],
        norm: str = "gn4+pn",
        act_layer: str = "relu",
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 16,
        large_input: bool = False,
        groups: int = 1,
        base_width: int = 64,
        norm_eps: float = 1e-5,
        zero_init_last: bool = False,
        proxy_method: str = "exact",
    ) -> None:
        super().__init__(depths)
        layers = Layers(norm, act_layer, norm_eps, proxy_method=proxy_method)
        if large_input:
            self.stem: nn.Module = nn.Sequential(
                OrderedDict(
                    conv=layers.conv(in_chans, width, 7, 2), pool=nn.MaxPool2d(3, 2, padding=1)
                )
            )
        else:
            self.stem = layers.conv(in_chans, width, 3)
        channels = self.add_groups(
            lambda inputs, width, stride: block(inputs, width, stride, layers, groups, base_width),
            block.expansion,
            width,
        )
        self.norm = layers.norm_act(channels)
        hand_on_to(self.norm, shift_too=True)
        self.pool = MeanPool()
        self.fc = Linear(channels, num_classes)
        initialize_convolutions(self)
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, (PreActBasicBlock, PreActBottleneck)):
                    zero_branch(module.last_conv, module.last_conv, norm)

    def split_points(self) -> List[str]:
        """Return, in order, the layers at which exactly one tensor crosses: pipeline boundaries."""
        return [*self.blocks(), "norm", "pool", "fc"]

    def split_aliases(self) -> Dict[str, str]:
        """Return published names of split points.

        ``stage3/unit4/relu`` begins the next stage with the activation behind the addition: here
        with the next block, whose first unit that activation belongs to.
        """
        blocks = self.blocks()
        followers = [*blocks[1:], "norm"]
        return published_splits(self.depths, blocks, followers, pool="pool")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, in_chans, H, W)``."""
        x = self.stem(x)
        for group in self.groups:
            x = self.get_submodule(group)(x)
        return self.fc(torch.flatten(self.pool(self.norm(x)), 1))
