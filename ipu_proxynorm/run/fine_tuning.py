"""Training some layers of a network only, from weights that another run has trained.

As in Masters et al., *Making EfficientNet More Efficient*, 2021 (arXiv 2106.03640): train at half
resolution, then the last layers at the full one.
"""

from __future__ import annotations

from typing import List, Sequence

from torch import nn

from ipu_proxynorm.errors import UserError, nearest


def within(name: str, layers: Sequence[str]) -> bool:
    """Tell whether ``name`` is one of ``layers`` or lies within one."""
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


def freeze(model: nn.Module, trainable: Sequence[str]) -> List[str]:
    """Let only the parameters within the layers ``trainable`` require gradients; [] means all.

    Returns:
        The names of the parameters that are frozen.

    Raises:
        UserError: one of ``trainable`` is no layer or parameter of the network.
    """
    if not trainable:
        return []
    names = [name for name, _ in model.named_modules() if name]
    names += [name for name, _ in model.named_parameters()]
    for layer in trainable:
        if layer not in names:
            close = nearest(layer, names) or names[:3]
            raise UserError(
                f"training.trainable={list(trainable)}: {layer!r} is no layer of the network; "
                f"nearest: {', '.join(close)}"
            )
    frozen = [name for name, _ in model.named_parameters() if not within(name, trainable)]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(within(name, trainable))
    return frozen


def set_training_mode(model: nn.Module, trainable: Sequence[str]) -> None:
    """Put the layers that train in training mode and the frozen ones in evaluation mode.

    So a frozen Batch Norm keeps its running statistics and uses them, and frozen dropout and
    stochastic depth drop nothing. Norms that are independent of the batch are the same in both.
    """
    model.train()
    if not trainable:
        return
    for name, module in model.named_modules():
        holds = any(within(layer, [name]) for layer in trainable)  # a trainable one lies within
        if name and not holds and not within(name, trainable):
            module.eval()
