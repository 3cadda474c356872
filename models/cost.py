"""What a network costs: parameters, and multiply-adds of an image, counted by layer."""

from __future__ import annotations

import dataclasses
from typing import Any, List, Optional

import torch
from torch import Tensor, nn

from ipu_proxynorm.models.factory import create_model, default_resolution


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters of a network, and multiply-adds of one image's forward pass through it."""

    parameters: int
    multiply_adds: int


def cost(name: str, norm: str = "bn", resolution: Optional[int] = None, **options: Any) -> Cost:
    """Return what a published network costs, without making its weights.

    Args:
        name: the name of the network.
        norm: its norm spec, for its parameters.
        resolution: height and width of the image, pixels; None: as published.
        options: of :func:`models.create_model`. Classes are those of the datasets that networks
            were published with: 1000, and 10 for images of 32x32.

    Raises:
        UserError: the name is unknown, or the network does not have an option.
    """
    published = default_resolution(name)
    size = published if resolution is None else resolution
    classes = 10 if published == 32 else 1000
    with torch.device("meta"):
        model = create_model(name, norm, classes, **options)
        bare = create_model(name, "none", classes, **options)  # what norms compute is not counted
        image = torch.empty(1, 3, size, size)
    return Cost(sum(p.numel() for p in model.parameters()), multiply_adds(bare, image))


def multiply_adds(model: nn.Module, images: Tensor) -> int:
    """Return the multiply-adds of convolutions and matrix products in a forward pass.

    As the papers and torchvision count: norms, activations, pooling and additions are not counted,
    nor are biases.

    Args:
        model: on the device of ``images``; the mode of each module is put back.
        images: (N, C, H, W); the count is that of all N.
    """
    counts: List[int] = []

    def count(module: nn.Module, inputs: Any, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        # Each element of the output sums over a filter: the weights of one output channel.
        counts.append(output.numel() * (weight.numel() // weight.shape[0]))

    hooks = [
        module.register_forward_hook(count)
        for module in model.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(images)
    finally:
        for module, training in modes:  # not by train(): some layers may be frozen
            module.training = training
        for hook in hooks:
            hook.remove()
    return sum(counts)
