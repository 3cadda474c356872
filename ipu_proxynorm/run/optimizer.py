"""The optimiser of a run, on the device."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

import torch
from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import OptimizerConfig, optimizer_values
from ipu_proxynorm.norm import parameter_groups
from ipu_proxynorm.run.schedule import loss_scaling_at

Groups = List[Dict[str, Any]]
Builder = Callable[[Groups, float, Dict[str, Any]], torch.optim.Optimizer]


def _plain(name: str, **more: Any) -> Builder:
    """Return the builder of PopTorch's optimiser of that name."""
    return lambda groups, scaling, arguments: getattr(poptorch.optim, name)(
        groups, **more, **arguments
    )


def _sgd_combined(
    groups: Groups, scaling: float, arguments: Dict[str, Any]
) -> torch.optim.Optimizer:
    """Return SGD whose gradients accumulate in the velocity.

    What accumulates is scaled like the gradients. It stays so when the loss scaling changes: the
    velocity of the steps before would otherwise be taken for another one.
    """
    return poptorch.optim.SGD(
        groups, use_combined_accum=True, velocity_scaling=scaling, **arguments
    )


#: How each of `config.optimizer_kinds.OPTIMIZERS` is made, from parameter groups, the loss scaling
#: at the start, and the arguments that the configuration gives.
BUILDERS: Dict[str, Builder] = {
    "sgd": _plain("SGD"),
    "sgd_combined": _sgd_combined,
    "rmsprop": _plain("RMSprop"),
    "rmsprop_tf": _plain("RMSprop", use_tf_variant=True),
    "adam": _plain("Adam"),
    "adamw": _plain("AdamW"),
    "lamb": _plain("LAMB"),
}


def scaled_learning_rate(config: OptimizerConfig, global_batch: Optional[int]) -> float:
    """Return ``lr`` for ``global_batch`` images per weight update, in proportion to ``lr_batch``.

    As ``lr`` is where ``lr_batch`` is null.
    """
    if config.lr_batch is None or global_batch is None:
        return config.lr
    return config.lr * global_batch / config.lr_batch


def create_optimizer(
    config: OptimizerConfig, model: nn.Module, global_batch: Optional[int] = None
) -> torch.optim.Optimizer:
    """Return the PopTorch optimiser over the groups that :func:`norm.parameter_groups` makes.

    Weights and Proxy Norm's proxy parameters decay; norms' scales and shifts and biases do not.
    Momenta and means of squares are float32 in every precision.

    Args:
        config: names and numbers; a null of ``config`` is the optimiser's own default.
        model: parameters that require no gradient are left out.
        global_batch: images per weight update, which the learning rate is scaled to.
    """
    groups: List[Dict[str, Any]] = parameter_groups(
        model, config.weight_decay, config.proxy_weight_decay
    )
    scaling = loss_scaling_at(config, 0, 1)
    arguments: Dict[str, Any] = {
        "lr": scaled_learning_rate(config, global_batch),
        "loss_scaling": scaling,
        "accum_type": getattr(torch, config.accumulation),
        **optimizer_values(config),
    }
    return BUILDERS[config.name](groups, scaling, arguments)


def set_loss_scaling(optimizer: torch.optim.Optimizer, scaling: float) -> None:
    """Change the loss scaling; the caller then hands the optimiser to ``setOptimizer``.

    The weight updates are the same for any loss scaling, but PopTorch's separate SGD keeps its
    velocity in units of it: when the loss scaling doubles, the velocity is once halved.
    """
    optimizer.loss_scaling = scaling  # type: ignore[attr-defined]
