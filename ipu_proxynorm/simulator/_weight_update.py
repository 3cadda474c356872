"""The arithmetic of one weight update, as PopART's optimisers do it.

Each rule turns an optimiser's attributes into the scalars that PopART keeps on the device, creates
the state of one parameter, and updates one parameter in place. Names of scalars and state are
PopART's: they appear in ``ipu_param`` and ``ipu_state``. Source of the equations: PopART's
``optimizer.hpp``, ``adam.hpp`` and ``adaptive.hpp``.

Gradients come in summed or averaged as the options say, and still multiplied by the loss scaling;
``unscale`` undoes what automatic loss scaling multiplied them by on top of that. Parameters and
state come in as float32 (or float64); who calls rounds them to the types that they are stored in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Dict, Tuple

import torch
from torch import Tensor

# An attribute's value and whether it is compiled in as a constant.
ValueAndConst = Tuple[float, bool]
Values = Dict[str, ValueAndConst]
Scalars = Dict[str, float]
State = Dict[str, Tensor]


@dataclass(frozen=True)
class Factors:
    """How gradients are reduced.

    Attributes:
        accumulation: micro-batches for each update.
        replication: replicas, over all processes.
        mean: gradients are averaged rather than summed.
        post: the mean divides after summing, that is, within the optimiser's scalars.

    """

    accumulation: int = 1
    replication: int = 1
    mean: bool = True
    post: bool = True

    @property
    def divisor(self) -> float:
        """What the optimiser's scalars divide the summed gradient by."""
        return float(self.accumulation * self.replication) if self.mean and self.post else 1.0


def _zeros(param: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def _derived(value: float, *sources: ValueAndConst) -> ValueAndConst:
    """Return a scalar, constant if everything that it is computed from is."""
    return value, all(const for _, const in sources)


class SgdRule:
    """SGD with a tensor for the gradient and one for the velocity, or without momentum.

    w ← w·wdsf − slr·g without momentum; with it v ← m·v + swd·w + dpsf·g, w ← w − slr·v.
    """

    state_names: Tuple[str, ...] = ("Accl1",)

    def __init__(self, factors: Factors, velocity_dtype: torch.dtype) -> None:
        self.factors = factors
        self.velocity_dtype = velocity_dtype

    @staticmethod
    def hasMomentum(values: Values) -> bool:
        """Momentum that is a constant 0 is left out of the program."""
        momentum, const = values["momentum"]
        return not const or momentum != 0.0

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
        if not self.hasMomentum(values):
            return {
                "scaledLearningRate0": _derived(lr[0] * undamped / (ls[0] * div), lr, ls, dp),
                "weightDecayScaleFactor0": _derived(1.0 - lr[0] * undamped * wd[0], wd, lr, dp),
            }
        scalars = {
            "scaledWeightDecay1": _derived(undamped * wd[0] * vs[0], dp, wd, vs),
            "scaledLearningRate2": _derived(lr[0] / vs[0], lr, vs),
            "scaledMomentum2": mm,
            "dampeningScaleFactor2": _derived(undamped * vs[0] / (ls[0] * div), dp, vs, ls),
        }
        if self._isNesterov(values):
            scalars.update(
                nesterovDampeningScaleFactor2=_derived(div / (undamped * vs[0]), dp, vs, ls),
                nesterovGradScaleFactor2=vs,
                sgdMomentum=mm,
                sgdWeightDecay=wd,
            )
        return scalars

    def state(self, param: Tensor, values: Values, scalars: Scalars) -> State:
        """Return the velocity, if there is momentum."""
        if not self.hasMomentum(values):
            return {}
        return {"Accl1": _zeros(param, self.velocity_dtype)}

    def update(
        self, param: Tensor, grad: Tensor, s: Scalars, state: State, unscale: float = 1.0
    ) -> None:
        """Update one parameter and its velocity in place."""
        div = self.factors.divisor * unscale
        if "scaledLearningRate0" in s:
            if s["weightDecayScaleFactor0"] != 1.0:
                param.mul_(s["weightDecayScaleFactor0"])
            param.add_(_to(grad, param), alpha=-s["scaledLearningRate0"] * div)
            return
        velocity = state["Accl1"]
        velocity.mul_(s["scaledMomentum2"])
        if s["scaledWeightDecay1"] != 0.0:
            velocity.add_(_to(param, velocity), alpha=s["scaledWeightDecay1"])
        velocity.add_(_to(grad, velocity), alpha=s["dampeningScaleFactor2"] * div)
        updater = velocity
        if "nesterovGradScaleFactor2" in s:
            inverse = s["dampeningScaleFactor2"] * s["nesterovDampeningScaleFactor2"] * unscale
            updater = (grad * inverse).add_(_to(param, grad), alpha=s["sgdWeightDecay"])
            updater.mul_(s["nesterovGradScaleFactor2"])
            updater.add_(_to(velocity, grad), alpha=s["sgdMomentum"])
        param.add_(_to(updater, param), alpha=-s["scaledLearningRate2"])


class CombinedSgdRule(SgdRule):
    """SGD whose gradients accumulate in the velocity itself.

    v ← a + dpsf·g, w ← w − slr·v, and then a ← m·v + swd·w, ready for the next gradients; the state
    is a. It has the parameter's type.
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
        if not self.hasMomentum(values):
            return super().scalars(values)
        lr, wd, dp = values["learningRate"], values["weightDecay"], values["dampening"]
        ls, mm, vs = values["lossScaling"], values["momentum"], values["velocityScaling"]
        rf = self._velocityReplication()
        undamped = 1.0 - dp[0]
        dpsf = undamped * vs[0] * self._dampeningFactor() / ls[0]
        scalars = {
            "scaledWeightDecay1": _derived(undamped * wd[0] * vs[0], dp, wd, vs),
            "scaledLearningRate1": _derived(lr[0] / (vs[0] * rf), lr, vs),
            "scaledMomentum1": _derived(mm[0] / rf, mm),
            "dampeningScaleFactor1": _derived(dpsf, dp, vs, ls),
        }
        if self._isNesterov(values):
            inverse = 1.0 / (undamped * vs[0] * self._dampeningFactor())
            scalars.update(
                nesterovDampeningScaleFactor1=_derived(inverse, dp, vs, ls),
                nesterovGradScaleFactor1=_derived(vs[0] * rf, vs),
                sgdMomentum=mm,
                sgdWeightDecay=wd,
            )
        return scalars

    def state(self, param: Tensor, values: Values, scalars: Scalars) -> State:
        """Return the velocity, which starts with the first step's weight decay in it."""
        if not self.hasMomentum(values):
            return {}
        return {"Accl": param.detach() * scalars["scaledWeightDecay1"]}

    def update(
        self, param: Tensor, grad: Tensor, s: Scalars, state: State, unscale: float = 1.0
    ) -> None:
        """Update one parameter and its velocity in place."""
        if "scaledLearningRate0" in s:
            super().update(param, grad, s, state, unscale)
            return
        velocity = state["Accl"]
        # The scalars are meant for summed gradients and velocities; ours are already reduced.
        rf = self._velocityReplication()
        velocity.add_(
            _to(grad, velocity),
            alpha=s["dampeningScaleFactor1"] * unscale / self._dampeningFactor(),
        )
        updater = velocity
        if "nesterovGradScaleFactor1" in s:
            inverse = s["dampeningScaleFactor1"] * s["nesterovDampeningScaleFactor1"] * unscale
            updater = (grad * inverse).add_(_to(param, grad), alpha=s["sgdWeightDecay"])
            updater.mul_(s["nesterovGradScaleFactor1"] / rf)
            updater.add_(_to(velocity, grad), alpha=s["sgdMomentum"])
        param.add_(_to(updater, param), alpha=-s["scaledLearningRate1"] * rf)
        velocity.mul_(s["scaledMomentum1"] * rf)
        if s["scaledWeightDecay1"] != 0.0:
            velocity.add_(_to(param, velocity), alpha=s["scaledWeightDecay1"])


@dataclass(frozen=True)
class MomentTypes:
    """Types of the gradient accumulator and of the first and second moments."""

    accum: torch.dtype = torch.float32
    first: torch.dtype = torch.float32
    second: torch.dtype = torch.float32

    def unscaledType(self) -> torch.dtype:
        """float16 gradients are cast up if both moments are float32."""
        both_float = self.first == self.second == torch.float32
        return torch.float32 if both_float else self.accum


class AdamRule:
    """Adam, AdamW and LAMB, with or without bias correction.

    m ← β₁m + (1−β₁)g, v ← β₂v + (1−β₂)g², u = m̂ / (√v̂ + ε) [+ wd·w], w ← w − lr·r·u, where r is 1
    or, for LAMB, min(‖w‖, max_weight_norm) / ‖u‖.
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
            "adamGradientScaling": _derived(gradient_scaling, ls),
        }
        if self.lamb:
            scalars["maxWeightNorm"] = values["maxWeightNorm"]
        return scalars

    def state(self, param: Tensor, values: Values, scalars: Scalars) -> State:
        """Both moments and, where bias is corrected, the number of steps taken."""
        state = {
            "Accl1": _zeros(param, self.types.first),
            "Accl2": _zeros(param, self.types.second),
        }
        if self.corrected:
            state["Step"] = torch.zeros((), dtype=torch.float32)
        return state

    def update(
        self, param: Tensor, grad: Tensor, s: Scalars, state: State, unscale: float = 1.0
    ) -> None:
        """Update one parameter and its moments in place."""
        scale = s["adamGradientScaling"] * self.factors.divisor * unscale
        grad = grad.to(self.types.unscaledType()).to(param.dtype)
        if scale != 1.0:
            grad = grad * scale
        if not self.decoupled and s["weightDecay"] != 0.0:
            grad = grad.add(_to(param, grad), alpha=s["weightDecay"])
        beta1, beta2 = s["adamBeta1"], s["adamBeta2"]
        first, second = state["Accl1"], state["Accl2"]
        first.mul_(beta1).add_(_to(grad, first), alpha=1.0 - beta1)
        squared = _to(grad, second)
        second.mul_(beta2).addcmul_(squared, squared, value=1.0 - beta2)
        correction1 = correction2 = 1.0
        if self.corrected:
            step = float(state["Step"].add_(1.0))
            correction1 = 1.0 - _power(beta1, step)
            correction2 = 1.0 - _power(beta2, step)
        denominator = second.sqrt().div_(_power(correction2, 0.5)).add_(s["adamEps"])
        if not (self.lamb or (self.decoupled and s["weightDecay"] != 0.0)):
            param.addcdiv_(
                _to(first, param),
                _to(denominator, param),
                value=-s["learningRate"] / correction1,
            )
            return
        updater = _to(_to(first, denominator).div(denominator).div_(correction1), param)
        if self.decoupled and s["weightDecay"] != 0.0:
            updater = updater.add(param, alpha=s["weightDecay"])
        rate = s["learningRate"]
        if self.lamb:
            rate *= _trustRatio(param, updater, s["maxWeightNorm"])
        param.add_(updater, alpha=-rate)


def _power(base: float, exponent: float) -> float:
    """Return the power, NaN where it is not real: a state loaded by hand may hold anything."""
    try:
        return math.pow(base, exponent)
    except (ValueError, ZeroDivisionError):
        return math.nan


def _trustRatio(param: Tensor, updater: Tensor, max_weight_norm: float) -> float:
    weight_norm = float(param.float().norm())
    update_norm = float(updater.float().norm())
    if max_weight_norm == 0.0 or weight_norm == 0.0 or update_norm == 0.0:
        return 1.0
    return min(weight_norm, max_weight_norm) / update_norm


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
            "adaptiveGradientScaling": _derived(gradient_scaling, ls),
        }

    def state(self, param: Tensor, values: Values, scalars: Scalars) -> State:
        """Return the mean of squares, the mean if centred, the momentum if there is any."""
        state = {"Accl1": _zeros(param, self.types.first)}
        if self.tf_variant:
            state["Accl1"].fill_(1.0)
        if self.centered:
            state["Accl2"] = _zeros(param, self.types.second)
        if SgdRule.hasMomentum(values):
            state["Accl3"] = _zeros(param, torch.float32)
        return state

    def update(
        self, param: Tensor, grad: Tensor, s: Scalars, state: State, unscale: float = 1.0
    ) -> None:
        """Update one parameter and its state in place."""
        scale = s["adaptiveGradientScaling"] * self.factors.divisor * unscale
        grad = grad.to(self.types.unscaledType()).to(param.dtype)
        if scale != 1.0:
            grad = grad * scale
        if s["weightDecay"] != 0.0:
            grad = grad.add(_to(param, grad), alpha=s["weightDecay"])
        alpha = s["adaptiveAlpha"]
        mean_square = state["Accl1"]
        squared = _to(grad, mean_square)
        mean_square.mul_(alpha).addcmul_(squared, squared, value=1.0 - alpha)
        variance = mean_square
        if self.centered:
            mean = state["Accl2"]
            mean.mul_(alpha).add_(_to(grad, mean), alpha=1.0 - alpha)
            centre = _to(mean, mean_square)
            variance = mean_square.addcmul(centre, centre, value=-1.0)
        if self.tf_variant:
            denominator = variance.add(s["adaptiveEps"]).sqrt_()
        else:
            denominator = variance.sqrt().add_(s["adaptiveEps"])
        updater = _to(_to(grad, denominator).div(denominator), grad)
        rate = s["learningRate"]
        if "Accl3" in state:
            if self.tf_variant:
                updater, rate = updater.mul(rate), 1.0
            momentum = state["Accl3"]
            updater = momentum.mul_(s["adaptiveMomentum"]).add_(_to(updater, momentum))
        param.add_(_to(updater, param), alpha=-rate)


def _to(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor if tensor.dtype == like.dtype else tensor.to(like.dtype)
