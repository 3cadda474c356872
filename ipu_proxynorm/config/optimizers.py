"""Which keys each optimiser has, and their defaults."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict

from ipu_proxynorm.config.optimizer_kinds import OPTIMIZERS
from ipu_proxynorm.config.schema import OptimizerConfig
from ipu_proxynorm.errors import UserError

#: The numbers that float32 has at full precision, rounded inwards.
SMALLEST, LARGEST = 1.2e-38, 3.4e38


def optimizer_values(config: OptimizerConfig) -> Dict[str, Any]:
    """Return the values of the optimiser's own keys, by name."""
    own = OPTIMIZERS[config.name].keys
    given = {name: getattr(config, name) for name in own}
    values = {name: own[name] if value is None else value for name, value in given.items()}
    if "betas" in values:
        values["betas"] = tuple(values["betas"])
    return values


def check_optimizer(config: OptimizerConfig) -> None:
    """Refuse keys that the chosen optimiser does not have, and values that it cannot take.

    Raises:
        UserError: names the key, its value and the optimisers that have it.
    """
    _refuse_foreign_keys(config)
    for name, value in dataclasses.asdict(config).items():
        if isinstance(value, float) and value and not SMALLEST <= value <= LARGEST:
            raise UserError(
                f"optimizer.{name}={value:g}: the device computes in float32; expected a number "
                f"from {SMALLEST:g} to {LARGEST:g}"
            )
    betas = config.betas
    if betas is not None and not (len(betas) == 2 and all(0 <= beta < 1 for beta in betas)):
        raise UserError(
            f"optimizer.betas={betas}: expected two numbers from 0 to below 1, e.g. [0.9, 0.999]"
        )
    if config.nesterov and config.momentum == 0:
        raise UserError(
            "optimizer.nesterov=True: expected optimizer.momentum above 0; set it, or leave "
            "nesterov out"
        )
    initial = config.initial_loss_scaling
    if initial is not None:
        ratio = config.loss_scaling / initial
        if ratio < 1 or math.frexp(ratio)[0] != 0.5:  # a power of 2 has this mantissa
            raise UserError(
                f"optimizer.initial_loss_scaling={initial:g}: expected loss_scaling "
                f"({config.loss_scaling:g}) divided by a power of 2, as it doubles up to it"
            )


def _refuse_foreign_keys(config: OptimizerConfig) -> None:
    own = OPTIMIZERS[config.name].keys
    for name in sorted({name for kind in OPTIMIZERS.values() for name in kind.keys}):
        value = getattr(config, name)
        if value is not None and name not in own:
            having = ", ".join(k for k, kind in OPTIMIZERS.items() if name in kind.keys)
            raise UserError(
                f"optimizer.{name}={value}: optimizer.name={config.name} does not have it "
                f"({having} do); leave it out"
            )
