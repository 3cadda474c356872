"""PopTorch's optimisers: torch's, with loss scaling, choice of state types and device state.

Their ``step`` does not run on the device; what runs there is in ``_device_optimizer``.
"""

from __future__ import annotations

import math
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import torch

from ._logging import logger

_ACCUMULATION_TYPES = (torch.float16, torch.float32)


class VariableAttributes:
    """Which attributes of an optimiser may change after compiling; the others are constants."""

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable_attributes = variable_attributes
        self._allowed_attributes = allowed_attributes

    def isConstant(self, attr: str) -> bool:
        """Whether the attribute is compiled into the program."""
        return attr not in self._variable_attributes

    def _checkKnown(self, attr: str) -> None:
        if attr not in self._allowed_attributes:
            raise AssertionError(
                f"Unknown attribute {attr}, allowed values: {self._allowed_attributes}"
            )

    def markAsConstant(self, attr: str) -> None:
        """Compile the attribute into the program."""
        self._checkKnown(attr)
        self._variable_attributes = [a for a in self._variable_attributes if a != attr]

    def markAsVariable(self, attr: str) -> None:
        """Let the attribute change after compiling."""
        self._checkKnown(attr)
        self._variable_attributes.append(attr)


class Optimizer:
    """What PopTorch's optimisers have in common: their state lives on the device.

    ``state_dict`` holds torch's keys and ``ipu_state`` and ``ipu_param``, the device's tensors,
    both None before a model that uses the optimiser has compiled.
    """

    # Attributes of the optimiser that torch's does not have and that may change after compiling.
    _child_vars: Sequence[str] = ("loss_scaling",)
    # All attributes that torch's optimiser does not have.
    _child_only: Sequence[str] = ()
    # Attributes that each parameter group may set.
    _group_vars: Sequence[str] = ()

    defaults: Dict[str, Any]
    param_groups: List[Dict[str, Any]]
    state: Any  # torch's: a dictionary by parameter

    def __init__(self) -> None:
        self._state_dict: Dict[str, Any] = {"ipu_state": None, "ipu_param": None}
        # The host's state is newer than the device's, and the other way round.
        self.ipu_state_is_dirty = False
        self.host_state_is_dirty = False

    # A model replaces these two on the instance, so that they reach its device.
    def state_dict(self) -> Dict[str, Any]:
        """Return torch's state and the device's."""
        return self.get_state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over a state that came from a device.

        Raises:
            RuntimeError: the state is empty or has no device state.

        """
        torch.optim.Optimizer.load_state_dict(self, state)  # type: ignore[arg-type]
        self.set_state_dict(state)

    def get_state_dict(self) -> Dict[str, Any]:
        """Return the state as the host knows it."""
        return {**self._state_dict, **torch.optim.Optimizer.state_dict(self)}  # type: ignore[arg-type]

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        """Replace the host's copy of the device's state, to be uploaded before the next run."""
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        if not ("ipu_state" in state and "ipu_param" in state):
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        self._state_dict = state
        self.ipu_state_is_dirty = True
        self.host_state_is_dirty = False

    def has_state(self) -> bool:
        """Whether the host holds a device state."""
        return (
            self._state_dict.get("ipu_state") is not None
            and self._state_dict.get("ipu_param") is not None
        )

    def __getstate__(self) -> Dict[str, Any]:
        # torch keeps groups and its own state. Hooks of models and schedulers on this instance stay
        # behind, and a copy's state is not on any device yet.
        state = {
            "defaults": self.defaults,
            "state": self.state,
            "param_groups": self.param_groups,
        }
        own = (*self._child_only, "max_weight_norm", "variable_attrs", "_state_dict")
        state.update({name: self.__dict__[name] for name in own if name in self.__dict__})
        state["ipu_state_is_dirty"] = self.has_state()
        state["host_state_is_dirty"] = False
        return state

    def _setAttributes(self, given: Dict[str, Any], defaults: Dict[str, Any]) -> None:
        """Store the attributes of ``defaults``, as given or by default, and check type names."""
        for name, default in defaults.items():
            value = default if given[name] is None else given[name]
            if name.endswith("accum_type") and value not in _ACCUMULATION_TYPES:
                raise AssertionError(
                    "Accumulation types must be either torch.float32 or torch.float16 but "
                    f"{name} is {value}"
                )
            setattr(self, name, value)

    def _trackVariables(self, given: Dict[str, Any]) -> None:
        """Attributes that the caller gave are variable, those left out constant."""
        self.variable_attrs = VariableAttributes(
            [name for name, value in given.items() if value is not None],
            [*self.defaults, *self._child_vars],
        )

    @classmethod
    def _parentArgs(cls, given: Dict[str, Any]) -> Dict[str, Any]:
        """Arguments for torch's constructor: those that were given and that it knows."""
        return {k: v for k, v in given.items() if v is not None and k not in cls._child_only}


_MOMENT_TYPES = {
    "accum_type": torch.float32,
    "first_order_momentum_accum_type": torch.float32,
    "second_order_momentum_accum_type": torch.float32,
}


def _given(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """Return a constructor's ``locals()`` without ``self`` and the class cell."""
    return {k: v for k, v in arguments.items() if k not in ("self", "__class__")}


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
        given = _given(locals())
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
        given = _given(locals())
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
        given = _given(locals())
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
        given = _given(locals())
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
        given = _given(locals())
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
