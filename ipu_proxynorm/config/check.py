"""What the types of a run's keys cannot say: ranges, choices and combinations."""

from __future__ import annotations

import math
from typing import Any

from ipu_proxynorm.config.schema import RunConfig
from ipu_proxynorm.errors import UserError, unknown_name

CHOICES = {
    "ipu.execution": ("pipelined", "sharded"),
    "optimizer.name": ("sgd", "adam", "adamw", "rmsprop"),
    "schedule.name": ("cosine", "constant"),
}
AT_LEAST = {
    "data.workers": 0,
    "ipu.micro_batch_size": 1,
    "ipu.replication_factor": 1,
    "ipu.gradient_accumulation": 1,
    "ipu.device_iterations": 1,
    "ipu.inference_device_iterations": 1,
    "optimizer.lr": 0,
    "optimizer.momentum": 0,
    "optimizer.weight_decay": 0,
    "schedule.warmup_epochs": 0,
    "training.epochs": 1,
}
ABOVE_ZERO = ("model.width", "data.image_size", "optimizer.loss_scaling")
FRACTIONS = ("ipu.available_memory_proportion", "training.label_smoothing")


def get(config: RunConfig, name: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def check(config: RunConfig) -> None:
    """Refuse values that no run can have.

    Raises:
        UserError: names the key, its value, what was expected and what to change.
    """
    for name, choices in CHOICES.items():
        if get(config, name) not in choices:
            raise unknown_name(f"{name}:", get(config, name), choices)
    for name, least in AT_LEAST.items():
        if not least <= get(config, name) < math.inf:
            raise UserError(f"{name}={get(config, name)}: expected a finite number from {least} up")
    for name in ABOVE_ZERO:
        value = get(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"{name}={value}: expected a finite number above 0")
    for name in FRACTIONS:
        value = get(config, name)
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name}={value}: expected a number from 0 to 1")
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed={config.seed}: expected an integer from 0 to 2**63 - 1")
    if config.name in ("", ".", "..") or "/" in config.name:
        raise UserError(f"name={config.name!r}: expected a folder's name without '/'")
    stages = len(config.ipu.splits) + 1
    least, given = 2 * stages - 1, config.ipu.gradient_accumulation
    if config.ipu.execution == "pipelined" and stages > 1 and given < least:
        raise UserError(
            f"ipu.gradient_accumulation={given}: a pipeline of {stages} stages (ipu.splits="
            f"{config.ipu.splits}) needs at least {least} (2S-1) micro-batches in flight; "
            f"set ipu.gradient_accumulation={least} or more, or remove a split"
        )
