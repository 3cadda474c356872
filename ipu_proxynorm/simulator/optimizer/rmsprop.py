"""One weight update of RMSprop, torch's or TensorFlow's."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from .weight_update import (
    Factors,
    MomentTypes,
    Scalars,
    State,
    Values,
    derived,
    hasMomentum,
    zeros,
)


class RmspropRule:
    """RMSprop, centred or not, as torch's or TensorFlow's.

    v ← αv + (1−α)g², u = g / (√v + ε) (TensorFlow's: g / √(v + ε), v starting at 1), and with
    momentum b ← m·b + u (TensorFlow's: m·b + lr·u).
    """

    def __init__(
        self, factors: Factors, types: MomentTypes, *, centered: bool, tf_variant: bool
    ) -> None:
        self.factors = factors
        self.types = types
        self.centered = centered
        self.tf_variant = tf_variant
        self.state_names: Tuple[str, ...] = ("Accl1", "Accl2", "Accl3")

    def scalars(self, values: Values) -> Values:
        """PopART's scalars."""
        ls = values["lossScaling"]
        gradient_scaling = 1.0 / (ls[0] * self.factors.divisor)
        return {
            "learningRate": values["learningRate"],
            "weightDecay": values["weightDecay"],
            "adaptiveAlpha": values["alpha"],
            "adaptiveMomentum": values["momentum"],
            "adaptiveEps": values["eps"],
            "adaptiveGradientScaling": derived(gradient_scaling, ls),
        }

    def state(self, param: Tensor, values: Values, scalars: Scalars) -> State:
        """Return the mean of squares, the mean if centred, the momentum if there is any."""
        state = {"Accl1": zeros(param, self.types.first)}
        if self.tf_variant:
            state["Accl1"].fill_(1.0)
        if self.centered:
            state["Accl2"] = zeros(param, self.types.second)
        if hasMomentum(values):
            state["Accl3"] = zeros(param, torch.float32)
        return state

    def updater(
        self, param: Tensor, grad: Tensor, s: Scalars, state: State, unscale: float
    ) -> Tensor:
        """Return the gradient that the mean of squares takes in."""
        scale = s["adaptiveGradientScaling"] * self.factors.divisor * unscale
        grad = grad.to(self.types.unscaledType()).to(param.dtype)
        if scale != 1.0:
            grad = grad * scale
        if s["weightDecay"] != 0.0:
            grad = grad.add(param, alpha=s["weightDecay"])
        return grad

    def excess(self, s: Scalars) -> float:
        """PopTorch's RMSprop has no clipping."""
        return 1.0

    def finish(
        self, param: Tensor, updater: Tensor, s: Scalars, state: State, unscale: float
    ) -> None:
        """Update one parameter and its state in place."""
        alpha = s["adaptiveAlpha"]
        mean_square = state["Accl1"]
        mean_square.mul_(alpha).addcmul_(updater, updater, value=1.0 - alpha)
        variance = mean_square
        if self.centered:
            mean = state["Accl2"]
            mean.mul_(alpha).add_(updater, alpha=1.0 - alpha)
            variance = mean_square.addcmul(mean, mean, value=-1.0)
        if self.tf_variant:
            denominator = variance.add(s["adaptiveEps"]).sqrt_()
        else:
            denominator = variance.sqrt().add_(s["adaptiveEps"])
        change = updater.div(denominator)
        rate = s["learningRate"]
        if "Accl3" in state:
            if self.tf_variant:
                change, rate = change.mul(rate), 1.0
            momentum = state["Accl3"]
            change = momentum.mul_(s["adaptiveMomentum"]).add_(change)
        param.add_(change, alpha=-rate)
