"""One weight update of Adam, AdamW and LAMB."""

from __future__ import annotations

import math
from typing import Tuple

import torch
from torch import Tensor

from .weight_update import Factors, MomentTypes, Scalars, State, Values, derived, zeros


class AdamRule:
    """Adam, AdamW and LAMB, with or without bias correction.

    m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², u = m̂ / (√v̂ + ε) [+ wd·w], w ← w − lr·r·u, where r is 1
    or, for LAMB, min(‖w‖, max_weight_norm) / ‖u‖. PopART clips g, after loss scaling has been
    undone and Adam's weight decay added.
    """

    def __init__(
        self,
        factors: Factors,
        types: MomentTypes,
        *,
        decoupled: bool,
        corrected: bool = True,
        lamb: bool = False,
    ) -> None:
        self.factors = factors
        self.types = types
        self.decoupled = decoupled
        self.corrected = corrected
        self.lamb = lamb
        self.state_names: Tuple[str, ...] = ("Accl1", "Accl2") + (("Step",) if corrected else ())

    def scalars(self, values: Values) -> Values:
        """PopART's scalars."""
        ls = values["lossScaling"]
        gradient_scaling = 1.0 / (ls[0] * self.factors.divisor)
        scalars = {
            "learningRate": values["learningRate"],
            "weightDecay": values["weightDecay"],
            "adamBeta1": values["beta1"],
            "adamBeta2": values["beta2"],
            "adamEps": values["eps"],
            "adamGradientScaling": derived(gradient_scaling, ls),
        }
        if self.lamb:
            scalars["maxWeightNorm"] = values["maxWeightNorm"]
        return scalars

    def state(self, param: Tensor, values: Values, scalars: Scalars) -> State:
        """Both moments and, where bias is corrected, the number of steps taken."""
        state = {
            "Accl1": zeros(param, self.types.first),
            "Accl2": zeros(param, self.types.second),
        }
        if self.corrected:
            state["Step"] = torch.zeros((), dtype=torch.float32)
        return state

    def updater(
        self, param: Tensor, grad: Tensor, s: Scalars, state: State, unscale: float
    ) -> Tensor:
        """Return the gradient that the moments take in."""
        scale = s["adamGradientScaling"] * self.factors.divisor * unscale
        grad = grad.to(self.types.unscaledType()).to(param.dtype)
        if scale != 1.0:
            grad = grad * scale
        if not self.decoupled and s["weightDecay"] != 0.0:
            grad = grad.add(param, alpha=s["weightDecay"])
        return grad

    def excess(self, s: Scalars) -> float:
        """PopART's updater is divided as ours."""
        return 1.0

    def finish(
        self, param: Tensor, updater: Tensor, s: Scalars, state: State, unscale: float
    ) -> None:
        """Update one parameter and its moments in place."""
        beta1, beta2 = s["adamBeta1"], s["adamBeta2"]
        first, second = state["Accl1"], state["Accl2"]
        first.mul_(beta1).add_(updater, alpha=1.0 - beta1)
        second.mul_(beta2).addcmul_(updater, updater, value=1.0 - beta2)
        correction1 = correction2 = 1.0
        if self.corrected:
            step = float(state["Step"].add_(1.0))
            correction1 = 1.0 - _power(beta1, step)
            correction2 = 1.0 - _power(beta2, step)
        denominator = second.sqrt().div_(_power(correction2, 0.5)).add_(s["adamEps"])
        rate = s["learningRate"]
        if not self.lamb:
            if self.decoupled and s["weightDecay"] != 0.0:
                param.mul_(1.0 - rate * s["weightDecay"])
            param.addcdiv_(first, denominator, value=-rate / correction1)
            return
        change = first.div(denominator).div_(correction1)
        if s["weightDecay"] != 0.0:
            change.add_(param, alpha=s["weightDecay"])
        param.add_(change, alpha=-rate * _trustRatio(param, change, s["maxWeightNorm"]))


def _power(base: float, exponent: float) -> float:
    """Return the power, NaN where it is not real: a state loaded by hand may hold anything."""
    try:
        return math.pow(base, exponent)
    except (ValueError, ZeroDivisionError):
        return math.nan


def _trustRatio(param: Tensor, change: Tensor, max_weight_norm: float) -> float:
    weight_norm = float(param.float().norm())
    update_norm = float(change.float().norm())
    if max_weight_norm == 0.0 or weight_norm == 0.0 or update_norm == 0.0:
        return 1.0
    return min(weight_norm, max_weight_norm) / update_norm
