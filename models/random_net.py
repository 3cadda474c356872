"""The random network of the Proxy Norm paper: how depth changes a signal, without training.

Labatie, Masters, Eaton-Rosen and Luschi, 2021 (arXiv 2106.03743), Definition 1 and Figure 2.
"""

from __future__ import annotations

from typing import List

import torch
from torch import Tensor, nn

from ipu_proxynorm.models.layers import MeanPool, Network
from ipu_proxynorm.norm import Linear, create_conv, create_norm_act, hand_on_to


class RandomNet(Network):
    """A chain of convolution, norm, γ y + β and activation, all of one width and resolution.

    Weights are drawn as the paper has them: convolutions He-scaled, γ ~ N(1, 0.2²) and
    β ~ N(0, 0.2²). Proxy Norm's own parameters start at 0.

    Args:
        depth: number of layers.
        norm: norm spec of every norm.
        act_layer: activation behind every norm.
        num_classes: outputs of the classifier behind the chain.
        in_chans: channels of the images.
        width: channels of every layer.
        kernel: size of the convolutions, odd; they pad circularly.

    Raises:
        ValueError: the norm spec is unknown, or its groups do not divide the width.
    """

    def __init__(
        self,
        depth: int,
        norm: str = "ln+pn",
        act_layer: str = "relu",
        num_classes: int = 10,
        in_chans: int = 3,
        width: int = 1024,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        layers: List[nn.Module] = []
        for index in range(depth):
            conv = create_conv(
                norm,
                in_chans if index == 0 else width,
                width,
                kernel,
                padding=kernel // 2,
                padding_mode="circular",
                bias=False,
            )
            layers.append(nn.Sequential(conv, create_norm_act(norm, width, act_layer)))
        self.layers = nn.Sequential(*layers)
        for layer, following in zip(layers, layers[1:]):
            hand_on_to(layer[1], following[0])  # type: ignore[index]
        hand_on_to(layers[-1][1], shift_too=True)  # type: ignore[index]
        self.pool = MeanPool()
        self.fc = Linear(width, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw convolutions (He, fan in), γ and β."""
        for module in self.layers.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        for name, parameter in self.layers.named_parameters():
            if name.endswith(".1.weight"):
                nn.init.normal_(parameter, 1.0, 0.2)
            elif name.endswith(".1.bias"):
                nn.init.normal_(parameter, 0.0, 0.2)

    def split_points(self) -> List[str]:
        """Return, in order, the layers at which exactly one tensor crosses: pipeline boundaries."""
        return [f"layers.{index}" for index in range(1, len(self.layers))] + ["pool", "fc"]

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``(N, num_classes)`` of images ``(N, in_chans, H, W)``."""
        return self.fc(torch.flatten(self.pool(self.layers(x)), 1))
