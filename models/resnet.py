"""ResNet v1.5 and ResNeXt: residual networks with a norm behind every convolution.

He et al., *Deep Residual Learning for Image Recognition*, 2016 (arXiv 1512.03385), with the stride
on a bottleneck's 3x3 convolution (v1.5); Xie et al., *Aggregated Residual Transformations for Deep
Neural Networks*, 2017 (arXiv 1611.05431). Layout and parameters are named as torchvision's.

The last norm of a block, and the norm of a projection shortcut, are followed by an addition, not
by an activation: under ``+pn`` they keep their scale and have no shift, and the activation behind
the addition, which no norm precedes, is a plain one.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Type, Union

import torch
from torch import Tensor, nn

from ipu_proxynorm.models.layers import Layers, initialize_convolutions, zero_branch
from ipu_proxynorm.models.residual import ResidualNetwork, bottleneck_width, published_splits
from ipu_proxynorm.norm import Linear, hand_on_to


def projection(inputs: int, outputs: int, stride: int, layers: Layers) -> Optional[nn.Module]:
    """Return the shortcut's 1x1 convolution and norm where the shape changes; None: identity."""
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(layers.conv(inputs, outputs, 1, stride), layers.norm_only(outputs))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: ``(N, inputs, H, W)`` to ``(N, width, H / stride, W / stride)``."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, layers: Layers, groups: int, base_width: int
    ) -> None:
        super().__init__()
        self.conv1 = layers.conv(inputs, width, 3, stride)
        self.bn1 = layers.norm_act(width)
        self.conv2 = layers.conv(width, width, 3)
        hand_on_to(self.bn1, self.conv2)
        self.bn2 = layers.norm_only(width)
        self.downsample = projection(inputs, width, stride, layers)
        self.activation = layers.activation(width)

    def zero_branch(self, norm: str) -> None:
        """Let the residual branch start at zero."""
        zero_branch(self.bn2, self.conv2, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of shortcut and residual branch."""
        z = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return self.activation(z + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided, in ResNeXt grouped) and 1x1 convolutions, the last to 4 x width.

    ``(N, inputs, H, W)`` to ``(N, 4 * width, H / stride, W / stride)``.
    """

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, layers: Layers, groups: int, base_width: int
    ) -> None:
        super().__init__()
        inner, outputs = bottleneck_width(width, groups, base_width), self.expansion * width
        self.conv1 = layers.conv(inputs, inner, 1)
        self.bn1 = layers.norm_act(inner)
        self.conv2 = layers.conv(inner, inner, 3, stride, groups)
        self.bn2 = layers.norm_act(inner)
        self.conv3 = layers.conv(inner, outputs, 1)
        hand_on_to(self.bn1, self.conv2)
        hand_on_to(self.bn2, self.conv3)
        self.bn3 = layers.norm_only(outputs)
        self.downsample = projection(inputs, outputs, stride, layers)
        self.activation = layers.activation(outputs)

    def zero_branch(self, norm: str) -> None:
        """Let the residual branch start at zero."""
        zero_branch(self.bn3, self.conv3, norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated sum of shortcut and residual branch."""
        z = self.bn3(self.conv3(self.bn2(self.conv2(self.bn1(self.conv1(x))))))
        return self.activation(z + (x if self.downsample is None else self.downsample(x)))


class ResNet(ResidualNetwork):
    """Stem, groups ``layer1`` ... of blocks, average pooling, classifier.

    Args:
        block: :class:`BasicBlock` or :class:`Bottleneck`.
        depths: blocks of each group; each group after the first halves the resolution.
        norm: norm spec of every norm, e.g. ``ln+pn``.
        act_layer: activation behind norms and additions.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        width: channels of the first group (before a bottleneck's expansion); each group
            doubles them.
        large_input: the stem for 224x224 images, 7x7 of stride 2 and max-pooling, instead of 3x3.
        groups: the groups of a bottleneck's 3x3 convolution; more than one make a ResNeXt.
        base_width: channels of each of them, at width 64.
        norm_eps: ε of every norm.
        zero_init_last: let every residual branch start at zero: γ of its last norm is 0.
        proxy_method: how Proxy Norm's moments are taken: ``exact`` or ``sampled``.

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
        groups: int = 1,
        base_width: int = 64,
        norm_eps: float = 1e-5,
        zero_init_last: bool = False,
        proxy_method: str = "exact",
    ) -> None:
        super().__init__(depths)
        layers = Layers(norm, act_layer, norm_eps, proxy_method=proxy_method)
        kernel, stride = (7, 2) if large_input else (3, 1)
        self.conv1 = layers.conv(in_chans, width, kernel, stride)
        self.bn1 = layers.norm_act(width)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if large_input else None
        channels = self.add_groups(
            lambda inputs, width, stride: block(inputs, width, stride, layers, groups, base_width),
            block.expansion,
            width,
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = Linear(channels, num_classes)
        initialize_convolutions(self)
        if zero_init_last:
            for module in self.modules():
                if isinstance(module, (BasicBlock, Bottleneck)):
                    module.zero_branch(norm)

    def split_points(self) -> List[str]:
        """Return, in order, the layers at which exactly one tensor crosses: pipeline boundaries.

        Blocks, and within each the activation behind its addition.
        """
        stem = ["bn1"] if self.maxpool is None else ["bn1", "maxpool"]
        blocks = [name for block in self.blocks() for name in (block, f"{block}.activation")]
        return [*stem, *blocks, "avgpool", "fc"]

    def split_aliases(self) -> Dict[str, str]:
        """Return published names of split points, such as ``stage3/unit4/relu``."""
        blocks = self.blocks()
        relus = [f"{block}.activation" for block in blocks]
        return published_splits(self.depths, blocks, relus, pool="avgpool")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, in_chans, H, W)``."""
        x = self.bn1(self.conv1(x))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for group in self.groups:
            x = self.get_submodule(group)(x)
        return self.fc(torch.flatten(self.avgpool(x), 1))
