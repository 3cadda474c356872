"""PopTorch's optimisers: torch's, with loss scaling, choice of state types and device state.

Their ``step`` does not run on the device; what runs there is in ``_device_optimizer``.
"""

from __future__ import annotations

import inspect
import math
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Type

import torch

from ._logging import logger
from .alias import names
from .settings.optimizer_base import Optimizer, VariableAttributes, arguments_of

__all__ = ["LAMB", "SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "VariableAttributes"]

_MOMENT_TYPES = {
    "accum_type": torch.float32,
    "first_order_momentum_accum_type": torch.float32,
    "second_order_momentum_accum_type": torch.float32,
}


class SGD(Optimizer, torch.optim.SGD):
    """Stochastic gradient descent with momentum.

    By default gradient and velocity have a tensor each, of types ``accum_type`` and
    ``velocity_accum_type``. With ``use_combined_accum`` gradients accumulate in the velocity
    itself, scaled by ``velocity_scaling``: less memory, less precise in float16.

    Source: PopTorch user guide, ``poptorch.optim.SGD``.
    """

    _child_only = (
        "loss_scaling",
        "velocity_scaling",
        "use_combined_accum",
        "accum_type",
        "velocity_accum_type",
        "max_grad_norm",
    )
    _group_vars = ("lr", "momentum", "dampening", "weight_decay", "nesterov", "velocity_scaling")

    def __init__(
        self,
        params: Iterable,
        lr: float,
        momentum: Optional[float] = None,
        dampening: Optional[float] = None,
        weight_decay: Optional[float] = None,
        nesterov: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        velocity_scaling: Optional[float] = None,
        use_combined_accum: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        velocity_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        given = arguments_of(locals())
        Optimizer.__init__(self)
        torch.optim.SGD.__init__(self, **self._parentArgs(given))
        self._setAttributes(
            given,
            {
                "loss_scaling": 1.0,
                "use_combined_accum": False,
                "accum_type": torch.float32,
                "velocity_accum_type": torch.float32,
                "max_grad_norm": float("inf"),
            },
        )
        if use_combined_accum:
            scaling = 1.0 if velocity_scaling is None else velocity_scaling
            self.defaults["velocity_scaling"] = scaling
            for group in self.param_groups:
                group.setdefault("velocity_scaling", scaling)
        elif velocity_scaling is not None:
            logger.warning(
                "velocity_scaling value ignored when using the separate variant "
                "(use_combined_accum=False). In future, this will lead to an error. "
                "Please update your code."
            )
        self._trackVariables(given)


class Adam(Optimizer, torch.optim.Adam):
    """Adam, with weight decay added to the gradient. AMSGrad is not supported."""

    _child_only = (
        "loss_scaling",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "max_grad_norm",
    )
    _group_vars = ("lr", "betas", "eps", "weight_decay", "amsgrad")

    def __init__(
        self,
        params: Iterable,
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        given = arguments_of(locals())
        Optimizer.__init__(self)
        torch.optim.Adam.__init__(self, **self._parentArgs(given))
        defaults = {"loss_scaling": 1.0, **_MOMENT_TYPES, "max_grad_norm": float("inf")}
        self._setAttributes(given, defaults)
        self._trackVariables(given)


class AdamW(Optimizer, torch.optim.AdamW):
    """Adam with decoupled weight decay. AMSGrad is not supported.

    As in PopTorch, the device corrects the moments' bias even with ``bias_correction=False``.
    """

    _child_only = (
        "loss_scaling",
        "bias_correction",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "max_grad_norm",
    )
    _group_vars = ("lr", "betas", "weight_decay", "eps", "amsgrad")

    def __init__(
        self,
        params: Iterable,
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        amsgrad: Optional[bool] = None,
        maximize: Optional[bool] = None,
        foreach: Optional[bool] = None,
        capturable: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        fused: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        max_grad_norm: Optional[float] = None,
    ) -> None:
        given = arguments_of(locals())
        Optimizer.__init__(self)
        torch.optim.AdamW.__init__(self, **self._parentArgs(given))
        defaults = {
            "loss_scaling": 1.0,
            "bias_correction": True,
            **_MOMENT_TYPES,
            "max_grad_norm": float("inf"),
        }
        self._setAttributes(given, defaults)
        self._trackVariables(given)


class RMSprop(Optimizer, torch.optim.RMSprop):
    """RMSprop, as torch's or, with ``use_tf_variant``, as TensorFlow's.

    The latter starts the mean of squares at 1, adds eps under the root, and accumulates the
    learning rate in the momentum.
    """

    _child_only = (
        "loss_scaling",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
        "use_tf_variant",
    )
    _group_vars = ("lr", "momentum", "weight_decay", "alpha", "eps", "centered")

    def __init__(
        self,
        params: Iterable,
        lr: Optional[float] = None,
        alpha: Optional[float] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        momentum: Optional[float] = None,
        centered: Optional[bool] = None,
        foreach: Optional[bool] = None,
        maximize: Optional[bool] = None,
        differentiable: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
        use_tf_variant: Optional[bool] = None,
    ) -> None:
        given = arguments_of(locals())
        Optimizer.__init__(self)
        torch.optim.RMSprop.__init__(self, **self._parentArgs(given))
        defaults = {"loss_scaling": 1.0, **_MOMENT_TYPES, "use_tf_variant": False}
        self._setAttributes(given, defaults)
        self._trackVariables(given)


class LAMB(Optimizer, torch.optim.Optimizer):
    """Adam's update scaled for each tensor by min(‖w‖, max_weight_norm) / ‖update‖.

    Source: "Large Batch Optimization for Deep Learning", arXiv:1904.00962.
    """

    _child_only = (
        "loss_scaling",
        "bias_correction",
        "accum_type",
        "first_order_momentum_accum_type",
        "second_order_momentum_accum_type",
    )
    _group_vars = ("lr", "weight_decay", "betas", "eps", "max_weight_norm")

    bias_correction: bool

    def __init__(
        self,
        params: Iterable,
        lr: Optional[float] = None,
        betas: Optional[Tuple[float, float]] = None,
        eps: Optional[float] = None,
        weight_decay: Optional[float] = None,
        bias_correction: Optional[bool] = None,
        loss_scaling: Optional[float] = None,
        max_weight_norm: Optional[float] = None,
        accum_type: Optional[torch.dtype] = None,
        first_order_momentum_accum_type: Optional[torch.dtype] = None,
        second_order_momentum_accum_type: Optional[torch.dtype] = None,
    ) -> None:
        given = arguments_of(locals())
        group_defaults = {
            "lr": 1e-3,
            "betas": (0.9, 0.999),
            "eps": 1e-8,
            "weight_decay": 1e-2,
            "max_weight_norm": 65500.0,  # just below float16's largest value
        }
        for name, value in group_defaults.items():
            group_defaults[name] = value if given[name] is None else given[name]
        Optimizer.__init__(self)
        torch.optim.Optimizer.__init__(self, params, group_defaults)
        self._setAttributes(
            given,
            {
                "bias_correction": True,
                "loss_scaling": 1.0,
                "max_weight_norm": group_defaults["max_weight_norm"],
                **_MOMENT_TYPES,
            },
        )
        self._trackVariables(given)

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Optional[Callable[[], float]] = None
    ) -> Optional[float]:
        """One update on the host, for models that do not run on a device."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._stepParameter(param, group)
        return loss

    def _stepParameter(self, param: torch.Tensor, group: Dict[str, Any]) -> None:
        state: Dict[str, Any] = self.state[param]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(param)
            state["exp_avg_sq"] = torch.zeros_like(param)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        first = state["exp_avg"].lerp_(param.grad, 1 - beta1)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
        correction1 = 1 - beta1 ** state["step"] if self.bias_correction else 1.0
        correction2 = 1 - beta2 ** state["step"] if self.bias_correction else 1.0
        denominator = second.sqrt().div_(math.sqrt(correction2)).add_(group["eps"])
        update = (first / correction1).div_(denominator).add_(param, alpha=group["weight_decay"])
        weight_norm = float(param.norm())
        update_norm = float(update.norm())
        ratio = 1.0
        if weight_norm != 0 and update_norm != 0:
            ratio = min(weight_norm, group["max_weight_norm"]) / update_norm
        param.add_(update, alpha=-group["lr"] * ratio)


def _parseArgs(
    all_args: Dict[str, Any], child_attrs: Optional[List[str]] = None
) -> Tuple[Dict[str, Any], List[str]]:
    """Return a constructor's given arguments without those of its class alone, and all their names.

    Args:
        all_args: ``locals()`` of the constructor.
        child_attrs: names that the parent's constructor does not take.

    """
    given = {name: v for name, v in all_args.items() if name != "self" and v is not None}
    parent = {name: v for name, v in given.items() if name not in (child_attrs or [])}
    return parent, list(given)


def _check_constructor_match_parent(child_class: Type) -> None:
    """Check that an optimiser takes what its parent takes, in order, and then its own arguments.

    Raises:
        AssertionError: it does not.

    """
    parent = list(inspect.signature(child_class.__bases__[1]).parameters)
    given = list(inspect.signature(child_class).parameters)
    expected = [*parent, *child_class._child_only]
    assert given == expected, f"Expected parameters {expected} but got {given}"


__getattr__ = names.getter(__name__)
