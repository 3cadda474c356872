"""Learning rate and loss scaling over a run: each a function of the epoch alone.

So a run that was interrupted, or laid out otherwise with the same combined batch, finds the same
values at the same step without any state but its step.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch.optim.lr_scheduler import LambdaLR

from ipu_proxynorm.config import OptimizerConfig, ScheduleConfig

#: Epochs are quotients of integers: this far below a boundary, rounding has put them there.
ROUNDING = 1e-9


def learning_rate_factor(config: ScheduleConfig, epoch: float, epochs: int) -> float:
    """Return the learning rate as a share of its height, ``epoch`` epochs after the start.

    Linear warm-up from 0 over ``warmup_epochs``, times

    - ``cosine``: 1 in the warm-up, then half a cosine that reaches 0 at ``epochs``;
    - ``step``: ``decay`` to the power of the number of ``step_epochs`` that have passed;
    - ``exponential``: ``decay ** (epoch / decay_epochs)``, counted from the start of the run;
    - ``constant``: 1.

    With ``interval_epochs`` all of these but the warm-up see the epoch rounded down to a multiple
    of it: with ``interval_epochs`` = ``decay_epochs`` the exponential is a staircase.
    """
    warmup = min(config.warmup_epochs, epochs)
    ramp = epoch / warmup if epoch < warmup else 1.0
    at = epoch
    if config.interval_epochs is not None:
        at = math.floor(epoch / config.interval_epochs + ROUNDING) * config.interval_epochs
    return ramp * decay_factor(config, at, warmup, epochs)


def decay_factor(config: ScheduleConfig, epoch: float, warmup: float, epochs: int) -> float:
    """Return the schedule's factor without its warm-up; see :func:`learning_rate_factor`."""
    if config.name == "cosine":
        if epoch < warmup or epochs == warmup:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup)))
    if config.name == "step":
        passed = sum(epoch >= step - ROUNDING for step in config.step_epochs or [])
        return float((config.decay or 1.0) ** passed)
    if config.name == "exponential":
        return float((config.decay or 1.0) ** (epoch / (config.decay_epochs or 1.0)))
    return 1.0


def loss_scaling_at(config: OptimizerConfig, epoch: float, epochs: int) -> float:
    """Return the loss scaling ``epoch`` epochs after the start.

    It doubles from ``initial_loss_scaling`` to ``loss_scaling``; all its values are held for the
    same share of the run. From 16 to 128 in 100 epochs: 16, 32, 64 and 128 for 25 epochs each.
    """
    if config.initial_loss_scaling is None:
        return config.loss_scaling
    values = round(math.log2(config.loss_scaling / config.initial_loss_scaling)) + 1
    index = min(math.floor(epoch * values / epochs + ROUNDING), values - 1)
    return float(config.initial_loss_scaling * 2.0**index)


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
