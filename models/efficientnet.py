"""EfficientNet B0 to B7, with depthwise or with grouped convolutions.

Tan and Le, *EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks*, 2019
(arXiv 1905.11946); Masters, Labatie, Eaton-Rosen and Luschi, *Making EfficientNet More Efficient*,
2021 (arXiv 2106.03640): groups of 16 channels and an expansion of 4 in place of depthwise
convolutions and 6. Layout and parameters are named as timm's.

Proxy Norm stands behind every norm that an activation follows. The projection norm at the end of a
block is followed by none: under ``+pn`` it keeps its scale and has no shift. The activations within
squeeze-and-excite, which no norm precedes, are not proxy-normalized.
"""

from __future__ import annotations

import math
import string
from typing import Dict, List, Tuple

import torch
from torch import Tensor, nn

from ipu_proxynorm.errors import UserError, nearest_number, unknown_name
from ipu_proxynorm.models.layers import DropPath, Layers, MeanPool, Network, initialize_convolutions
from ipu_proxynorm.norm import Conv2d, Linear, hand_on_to, leave_scale, spatial_mean
from ipu_proxynorm.norm.pending import Output, Pending, finished

#: Kernel, stride, channels and blocks of each stage of B0.
STAGES: Tuple[Tuple[int, int, int, int], ...] = (
    (3, 1, 16, 1),
    (3, 2, 24, 2),
    (5, 2, 40, 2),
    (3, 2, 80, 3),
    (5, 1, 112, 3),
    (5, 2, 192, 4),
    (3, 1, 320, 1),
)
GROUP_DIMS = (1, 2, 4, 8, 16, 32, 64)


def round_channels(channels: float, divisor: int = 8) -> int:
    """Return the nearest multiple of ``divisor``, but not less than 90% of ``channels``."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def group_count(channels: int, group_dim: int) -> int:
    """Return the groups of a grouped convolution: of ``group_dim`` channels, or of a few more.

    The largest divisor of ``channels`` that leaves each group ``group_dim`` channels or more; one
    group where there are fewer channels than that. 40 channels make two groups of 20 for 16.
    """
    at_most = max(1, channels // group_dim)
    return next(groups for groups in range(at_most, 0, -1) if channels % groups == 0)


class SqueezeExcite(nn.Module):
    """A gate in (0, 1) for each channel of an image, from the means of all its channels."""

    def __init__(
        self, channels: int, reduced: int, layers: Layers, mean_of_unscaled: bool = False
    ) -> None:
        super().__init__()
        self.mean_of_unscaled = mean_of_unscaled
        self.conv_reduce = Conv2d(channels, reduced, 1)
        self.activation = layers.activation(reduced)
        self.conv_expand = Conv2d(reduced, channels, 1)

    def forward(self, x: Output) -> Tensor:
        """Return x (N, C, H, W) gated; a scale that is pending is multiplied within the gate."""
        unscaled = self.mean_of_unscaled and isinstance(x, Pending)
        pooled = spatial_mean(x.value if unscaled else x)  # type: ignore[union-attr]
        gate = torch.sigmoid(self.conv_expand(self.activation(self.conv_reduce(pooled))))
        if isinstance(x, Pending) and x.scale is not None:
            return x.value * (gate * x.scale.view(1, -1, 1, 1).to(gate.dtype))
        return finished(x) * gate


class MBConv(nn.Module):
    """Expansion, depthwise or grouped convolution, squeeze-and-excite, projection.

    ``(N, inputs, H, W)`` to ``(N, outputs, H / stride, W / stride)``. Without expansion the
    parameters are named as timm's ``DepthwiseSeparableConv``, with it as its ``InvertedResidual``.

    Args:
        inputs: channels.
        outputs: channels.
        kernel: the kernel size of the depthwise or grouped convolution.
        stride: likewise.
        layers: how layers are built.
        expansion: channels between expansion and projection, over ``inputs``.
        group_dim: channels of each group; 1: depthwise.
        drop_path: rate at which the residual branch is dropped.
        proxy_scale: ``full``, or ``published``: not in the mean that squeeze-and-excite reads.
        scale_in_gate: let an IPU program hand the scale of Proxy Norm on to squeeze-and-excite.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        layers: Layers,
        *,
        expansion: int,
        group_dim: int,
        drop_path: float,
        scale_in_gate: bool = True,
        proxy_scale: str = "full",
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        self.expands = expansion != 1
        groups = group_count(inner, group_dim)
        if self.expands:
            self.conv_pw = layers.conv(inputs, inner, 1)
            self.bn1 = layers.norm_act(inner)
        self.conv_dw = layers.conv(inner, inner, kernel, stride, groups)
        if self.expands:
            hand_on_to(self.bn1, self.conv_dw)
        gated = layers.norm_act(inner)
        if proxy_scale == "published":
            leave_scale(gated, "left")
        elif scale_in_gate:
            hand_on_to(gated)
        if self.expands:
            self.bn2 = gated
        else:
            self.bn1 = gated
        self.se = SqueezeExcite(inner, max(1, inputs // 4), layers, proxy_scale == "published")
        if self.expands:
            self.conv_pwl = layers.conv(inner, outputs, 1)
            self.bn3 = layers.norm_only(outputs)
        else:
            self.conv_pw = layers.conv(inner, outputs, 1)
            self.bn2 = layers.norm_only(outputs)
        self.drop_path = DropPath(drop_path) if self.residual else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the projection, added to x where shapes agree."""
        if self.expands:
            z = self.se(self.bn2(self.conv_dw(self.bn1(self.conv_pw(x)))))
            z = self.bn3(self.conv_pwl(z))
        else:
            z = self.bn2(self.conv_pw(self.se(self.bn1(self.conv_dw(x)))))
        return z if self.drop_path is None else x + self.drop_path(z)


class EfficientNet(Network):
    """Stem, seven stages of blocks, head, average pooling, dropout, classifier.

    Args:
        width: factor on B0's channels.
        depth: factor on B0's blocks a stage.
        norm: norm spec of every norm, e.g. ``ln+pn``.
        act_layer: activation behind every norm but those of projections.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        group_dim: channels of each group of the grouped convolutions; 1: depthwise.
        expansion: channels within a block, over those it reads.
        dropout: rate before the classifier.
        drop_path: rate of dropped residual branches, rising linearly over the blocks towards it.
        norm_eps: ε of every norm.
        proxy_scale_in_gate: in IPU programs, multiply with the scale of Proxy Norm in
            squeeze-and-excite's gate, (N, C, 1, 1), not before it. The function is the same.
        padding: of strided convolutions: ``symmetric``, or ``same`` as TensorFlow has it.
        proxy_method: how Proxy Norm's moments are taken: ``exact`` or ``sampled``.
        proxy_scale: ``full``, or ``published``: the original implementation's function, in which
            the mean that squeeze-and-excite reads and the head leave Proxy Norm's scale out.

    Raises:
        ValueError: the norm spec is unknown, its groups do not divide the channels, or
            ``group_dim`` is no power of two up to 64.
    """

    def __init__(
        self,
        width: float = 1.0,
        depth: float = 1.0,
        norm: str = "gn4+pn",
        act_layer: str = "silu",
        num_classes: int = 1000,
        in_chans: int = 3,
        group_dim: int = 1,
        expansion: int = 6,
        dropout: float = 0.2,
        drop_path: float = 0.2,
        norm_eps: float = 1e-3,
        proxy_scale_in_gate: bool = True,
        padding: str = "symmetric",
        proxy_method: str = "exact",
        proxy_scale: str = "full",
    ) -> None:
        super().__init__()
        if group_dim not in GROUP_DIMS:
            raise UserError(
                f"group_dim={group_dim}: expected one of {', '.join(map(str, GROUP_DIMS))}; "
                f"nearest: {nearest_number(group_dim, GROUP_DIMS)}"
            )
        if expansion < 1:
            raise UserError(f"expansion={expansion}: expected 1 or more; published are 6 and 4")
        for key, value, choices in (
            ("padding", padding, ("symmetric", "same")),
            ("proxy_scale", proxy_scale, ("full", "published")),
        ):
            if value not in choices:
                raise unknown_name(key, value, choices)
        layers = Layers(norm, act_layer, norm_eps, padding, proxy_method)
        channels = round_channels(32 * width)
        self.conv_stem = layers.conv(in_chans, channels, 3, 2)
        self.bn1 = layers.norm_act(channels)
        self.repeats = [math.ceil(depth * repeats) for *_, repeats in STAGES]
        stages: List[nn.Module] = []
        number, total = 0, sum(self.repeats)
        for (kernel, stride, outputs, _), repeats in zip(STAGES, self.repeats):
            blocks: List[nn.Module] = []
            for index in range(repeats):
                block = MBConv(
                    channels,
                    round_channels(outputs * width),
                    kernel,
                    stride if index == 0 else 1,
                    layers,
                    expansion=expansion if stages else 1,
                    group_dim=group_dim,
                    drop_path=drop_path * number / total,
                    scale_in_gate=proxy_scale_in_gate,
                    proxy_scale=proxy_scale,
                )
                channels = round_channels(outputs * width)
                blocks.append(block)
                number += 1
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        first = self.blocks[0][0]  # type: ignore[index]
        if not first.residual:  # an addition would read the stem's output, too
            hand_on_to(self.bn1, first.conv_dw)
        features = round_channels(1280 * width)
        self.conv_head = layers.conv(channels, features, 1)
        self.bn2 = layers.norm_act(features)
        if proxy_scale == "published":
            leave_scale(self.bn2, "dropped")
        else:
            hand_on_to(self.bn2, shift_too=True)
        self.global_pool = MeanPool()
        self.dropout = nn.Dropout(dropout)
        self.classifier = Linear(features, num_classes)
        initialize_convolutions(self)
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, in_chans, H, W)``."""
        x = self.blocks(self.bn1(self.conv_stem(x)))
        x = torch.flatten(self.global_pool(self.bn2(self.conv_head(x))), 1)
        return self.classifier(self.dropout(x))

    def split_points(self) -> List[str]:
        """Return, in order, the layers at which exactly one tensor crosses: pipeline boundaries.

        Blocks, and where nothing bypasses a block its layers too.
        """
        points = ["bn1"]
        for stage, repeats in enumerate(self.repeats):
            for index in range(repeats):
                name = f"blocks.{stage}.{index}"
                points += [name, *(f"{name}.{layer}" for layer in self._inner_points(name))]
        return [*points, "conv_head", "bn2", "global_pool", "classifier"]

    def _inner_points(self, name: str) -> List[str]:
        block = self.get_submodule(name)
        assert isinstance(block, MBConv)
        if block.residual:
            return []
        if block.expands:
            return ["bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
        return ["bn1", "conv_pw", "bn2"]

    def split_aliases(self) -> Dict[str, str]:
        """Return published names of split points: ``block3b``, and the parts of blocks.

        In TensorFlow a block that nothing bypasses is in parts: its name alone is the expansion,
        ``/b`` the depthwise or grouped convolution with squeeze-and-excite, ``/c`` the projection.
        The first PyTorch networks number all blocks through, from 0: ``_blocks/4``.
        """
        names = {"Top": "conv_head"}
        number = 0
        for stage, repeats in enumerate(self.repeats):
            for index in range(repeats):
                ours = f"blocks.{stage}.{index}"
                name = f"block{stage + 1}{string.ascii_lowercase[index]}"
                names[name] = ours
                names[f"_blocks.{number}"] = ours
                if self._inner_points(ours):
                    expands = "conv_dw" in self._inner_points(ours)
                    names[f"{name}/b"] = f"{ours}.conv_dw" if expands else ours
                    names[f"{name}/c"] = f"{ours}.conv_pwl" if expands else f"{ours}.conv_pw"
                    names[f"_blocks.{number}._project_conv"] = names[f"{name}/c"]
                if stage > 0:
                    names[f"{ours}.conv_pw"] = ours  # PyTorch: the first layer of the block
                number += 1
        return names
