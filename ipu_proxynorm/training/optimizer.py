"""The optimiser of a run and its learning-rate schedule, both on the device."""

from __future__ import annotations

import math
import warnings
from typing import Any, Dict, List

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import OptimizerConfig, ScheduleConfig
from ipu_proxynorm.norm import parameter_groups


def create_optimizer(config: OptimizerConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Return the PopTorch optimiser over the groups that :func:`norm.parameter_groups` makes.

    Weights and Proxy Norm's proxy parameters decay; norms' scales and shifts and biases do not.
    """
    groups: List[Dict[str, Any]] = parameter_groups(model, config.weight_decay)
    common: Dict[str, Any] = {"lr": config.lr, "loss_scaling": config.loss_scaling}
    if config.name == "sgd":
        return poptorch.optim.SGD(groups, momentum=config.momentum, **common)
    if config.name == "adam":
        return poptorch.optim.Adam(groups, **common)
    if config.name == "adamw":
        return poptorch.optim.AdamW(groups, **common)
    return poptorch.optim.RMSprop(groups, momentum=config.momentum, **common)


def learning_rate_factor(config: ScheduleConfig, epoch: float, epochs: int) -> float:
    """Return the learning rate as a share of its height, ``epoch`` epochs after the start.

    Linear warm-up from 0 over ``warmup_epochs``, then constant, or half a cosine that reaches 0 at
    ``epochs``.
    """
    warmup = min(config.warmup_epochs, epochs)
    if epoch < warmup:
        return epoch / warmup
    if config.name == "constant" or epochs == warmup:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))


def create_schedule(
    config: ScheduleConfig, optimizer: torch.optim.Optimizer, host_calls: int, epochs: int
) -> LambdaLR:
    """Return the schedule as a torch scheduler that counts host calls, ``host_calls`` an epoch."""
    return LambdaLR(optimizer, lambda call: learning_rate_factor(config, call / host_calls, epochs))


def step_schedule(schedule: LambdaLR) -> None:
    """Advance the schedule by one host call; the caller then hands it to ``setOptimizer``."""
    with warnings.catch_warnings():
        # torch misses a call of optimizer.step(), which happens on the device.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
        schedule.step()
