"""One weight update of stochastic gradient descent, in PopART's two forms."""

from __future__ import annotations

from typing import Tuple

import torch
from torch import Tensor

from .weight_update import Factors, Scalars, State, Values, derived, hasMomentum, zeros


class SgdRule:
    """SGD with a tensor for the gradient and one for the velocity, or without momentum.

    w ← w·wdsf − slr·u without momentum, where u is g; with it v ← m·v + swd·w + dpsf·g,
    w ← w − slr·u, where u is v. PopART clips u.
    """

    state_names: Tuple[str, ...] = ("Accl1",)

    def __init__(self, factors: Factors, velocity_dtype: torch.dtype) -> None:
        self.factors = factors
        self.velocity_dtype = velocity_dtype

    @staticmethod
    def _isNesterov(values: Values) -> bool:
        return values["nesterov"][0] != 0 and values["momentum"][0] > 0

    def scalars(self, values: Values) -> Values:
        """PopART's compound scalars."""
        lr, wd, dp = values["learningRate"], values["weightDecay"], values["dampening"]
        ls, mm = values["lossScaling"], values["momentum"]
        # The separate variant scales the velocity as it does the loss.
        vs = ls
        div = self.factors.divisor
        undamped = 1.0 - dp[0]
        if not hasMomentum(values):
            return {
                "scaledLearningRate0": derived(lr[0] * undamped / (ls[0] * div), lr, ls, dp),
                "weightDecayScaleFactor0": derived(1.0 - lr[0] * undamped * wd[0], wd, lr, dp),
            }
        scalars = {
            "scaledWeightDecay1": derived(undamped * wd[0] * vs[0], dp, wd, vs),
            "scaledLearningRate2": derived(lr[0] / vs[0], lr, vs),
            "scaledMomentum2": mm,
            "dampeningScaleFactor2": derived(undamped * vs[0] / (ls[0] * div), dp, vs, ls),
        }
        if self._isNesterov(values):
            scalars.update(
                nesterovDampeningScaleFactor2=derived(div / (undamped * vs[0]), dp, vs, ls),
                nesterovGradScaleFactor2=vs,
                sgdMomentum=mm,
                sgdWeightDecay=wd,
            )
        return scalars

    def state(self, param: Tensor, values: Values, scalars: Scalars) -> State:
        """Return the velocity, if there is momentum."""
        if not hasMomentum(values):
            return {}
        return {"Accl1": zeros(param, self.velocity_dtype)}

    def updater(
        self, param: Tensor, grad: Tensor, s: Scalars, state: State, unscale: float
    ) -> Tensor:
        """Update the velocity in place and return it, or Nesterov's; without momentum ``grad``."""
        if "scaledLearningRate0" in s:
            return grad
        velocity = state["Accl1"]
        velocity.mul_(s["scaledMomentum2"])
        if s["scaledWeightDecay1"] != 0.0:
            velocity.add_(param, alpha=s["scaledWeightDecay1"])
        velocity.add_(grad, alpha=s["dampeningScaleFactor2"] * self.factors.divisor * unscale)
        if "nesterovGradScaleFactor2" not in s:
            return velocity
        inverse = s["dampeningScaleFactor2"] * s["nesterovDampeningScaleFactor2"] * unscale
        updater = (grad * inverse).add_(param, alpha=s["sgdWeightDecay"])
        updater.mul_(s["nesterovGradScaleFactor2"])
        return updater.add_(velocity, alpha=s["sgdMomentum"])

    def excess(self, s: Scalars) -> float:
        """Without momentum PopART's updater is the sum of the gradients, ours is reduced."""
        return self.factors.divisor if "scaledLearningRate0" in s else 1.0

    def finish(
        self, param: Tensor, updater: Tensor, s: Scalars, state: State, unscale: float
    ) -> None:
        """Update the parameter in place."""
        if "scaledLearningRate0" not in s:
            param.add_(updater, alpha=-s["scaledLearningRate2"])
            return
        if s["weightDecayScaleFactor0"] != 1.0:
            param.mul_(s["weightDecayScaleFactor0"])
        param.add_(updater, alpha=-s["scaledLearningRate0"] * self.factors.divisor * unscale)


class CombinedSgdRule(SgdRule):
    """SGD whose gradients accumulate in the velocity itself.

    v ← a + dpsf·g, w ← w − slr·v, and then a ← m·v + swd·w, ready for the next gradients; the state
    is a. It has the parameter's type. PopART clips the v that w is updated with.
    """

    state_names = ("Accl",)

    def _velocityReplication(self) -> float:
        # With accumulation the velocities of all replicas are summed; momentum undoes that.
        return float(self.factors.replication) if self.factors.accumulation > 1 else 1.0

    def _dampeningFactor(self) -> float:
        factors, replication = self.factors, float(self.factors.replication)
        accumulation = float(factors.accumulation) if factors.mean else 1.0
        if factors.accumulation > 1 and not factors.mean:
            return replication / accumulation
        if factors.accumulation == 1 and factors.mean:
            return 1.0 / (replication * accumulation)
        return 1.0 / accumulation

    def scalars(self, values: Values) -> Values:
        """PopART's compound scalars."""
        if not hasMomentum(values):
            return super().scalars(values)
        lr, wd, dp = values["learningRate"], values["weightDecay"], values["dampening"]
        ls, mm, vs = values["lossScaling"], values["momentum"], values["velocityScaling"]
        rf = self._velocityReplication()
        undamped = 1.0 - dp[0]
        dpsf = undamped * vs[0] * self._dampeningFactor() / ls[0]
        scalars = {
            "scaledWeightDecay1": derived(undamped * wd[0] * vs[0], dp, wd, vs),
            "scaledLearningRate1": derived(lr[0] / (vs[0] * rf), lr, vs),
            "scaledMomentum1": derived(mm[0] / rf, mm),
            "dampeningScaleFactor1": derived(dpsf, dp, vs, ls),
        }
        if self._isNesterov(values):
            inverse = 1.0 / (undamped * vs[0] * self._dampeningFactor())
            scalars.update(
                nesterovDampeningScaleFactor1=derived(inverse, dp, vs, ls),
                nesterovGradScaleFactor1=derived(vs[0] * rf, vs),
                sgdMomentum=mm,
                sgdWeightDecay=wd,
            )
        return scalars

    def state(self, param: Tensor, values: Values, scalars: Scalars) -> State:
        """Return the velocity, which starts with the first step's weight decay in it."""
        if not hasMomentum(values):
            return {}
        return {"Accl": param.detach() * scalars["scaledWeightDecay1"]}

    def updater(
        self, param: Tensor, grad: Tensor, s: Scalars, state: State, unscale: float
    ) -> Tensor:
        """Add to the velocity in place and return it, or Nesterov's; without momentum ``grad``."""
        if "scaledLearningRate0" in s:
            return grad
        velocity = state["Accl"]
        # The scalars are meant for summed gradients and velocities; ours are already reduced.
        velocity.add_(
            grad,
            alpha=s["dampeningScaleFactor1"] * unscale / self._dampeningFactor(),
        )
        if "nesterovGradScaleFactor1" not in s:
            return velocity
        inverse = s["dampeningScaleFactor1"] * s["nesterovDampeningScaleFactor1"] * unscale
        updater = (grad * inverse).add_(param, alpha=s["sgdWeightDecay"])
        updater.mul_(s["nesterovGradScaleFactor1"] / self._velocityReplication())
        return updater.add_(velocity, alpha=s["sgdMomentum"])

    def excess(self, s: Scalars) -> float:
        """PopART's updater is the sum of the replicas', ours is reduced."""
        if "scaledLearningRate0" in s:
            return super().excess(s)
        return self._velocityReplication()

    def finish(
        self, param: Tensor, updater: Tensor, s: Scalars, state: State, unscale: float
    ) -> None:
        """Update the parameter in place, then the velocity for the next gradients."""
        if "scaledLearningRate0" in s:
            super().finish(param, updater, s, state, unscale)
            return
        velocity, rf = state["Accl"], self._velocityReplication()
        param.add_(updater, alpha=-s["scaledLearningRate1"] * rf)
        velocity.mul_(s["scaledMomentum1"] * rf)
        if s["scaledWeightDecay1"] != 0.0:
            velocity.add_(param, alpha=s["scaledWeightDecay1"])
