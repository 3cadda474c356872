"""What of an optimiser reaches the device: its kind, its attributes, and which may change."""

from __future__ import annotations

import enum
import math
import numbers
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

import torch

# Do not import the package itself here: it is still being imported.
from . import enums, optim
from ._logging import logger
from .alias import names
from .options import Options

# An attribute's value and whether it is compiled in as a constant.
ValueAndConst = Tuple[float, bool]


class _OptimizerType(enum.IntEnum):
    SGD1 = 0  # combined accumulator
    SGD2 = 1  # separate accumulator
    ADAM = 2
    ADAMW = 3
    ADAMW_NO_BIAS = 4
    RMSPROP = 5
    RMSPROP_CENTERED = 6
    LAMB = 7
    LAMB_NO_BIAS = 8


class OptimizerAttrTracker:
    """Warns, once each, about attributes that were not there when the model was first set up."""

    def __init__(self, opts: Options) -> None:
        self.log = logger.debug if opts._relax_optimizer_checks else logger.warning
        self.group_attributes: List[str] = []
        self.optim_attributes: List[str] = []
        self.record_attributes = True
        self.printed_msgs: List[str] = []
        self.type = "Unknown"

    def setType(self, optimizer_type: _OptimizerType) -> None:
        """Note the kind of optimiser, for the messages."""
        self.type = optimizer_type.name

    def enableChecks(self) -> None:
        """From now on unknown attributes are reported rather than noted as known."""
        self.record_attributes = False

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        """Look at the defaults, the optimiser's own attributes and every group."""
        own = [name for name in vars(optimizer) if name not in _UPSTREAM_ATTRIBUTES]
        self._check(self.group_attributes, list(optimizer.defaults), "default group variable")
        self._check(self.optim_attributes, own, "optimizer attribute")
        for i, group in enumerate(optimizer.param_groups):
            names = [name for name in group if name != "params"]
            self._check(self.group_attributes, names, f"group {i} attribute")

    def _check(self, expected: List[str], provided: List[str], attr_type: str) -> None:
        extra = [attr for attr in provided if attr not in expected]
        if self.record_attributes:
            expected += extra
        elif extra:
            message = f"Ignoring unexpected {attr_type} in {self.type} optimizer: {extra}"
            if message not in self.printed_msgs:
                self.log(message)
                self.printed_msgs.append(message)


_UPSTREAM_ATTRIBUTES = ("defaults", "state", "param_groups", "variable_attrs")


def _warnIfSubclassed(optimizer: torch.optim.Optimizer) -> None:
    bases = type(optimizer).__bases__
    if type(optimizer) in _TORCH_CLASSES or optim.Optimizer in bases:
        return
    if torch.optim.Optimizer not in bases:
        logger.warning(
            "Optimizer `%s` subclassed from classes in poptorch.optim or torch.optim are unlikely "
            "to behave as intended. Poptorch does not run Python optimizer code directly; but "
            "instead uses IPU native optimisers implemented in PopART.",
            type(optimizer).__name__,
        )


# torch.optim.AdamW derives from torch.optim.Adam in recent versions.
_TORCH_CLASSES = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop)


def _toPoptorchOptimizer(optimizer: torch.optim.Optimizer) -> _OptimizerType:
    _warnIfSubclassed(optimizer)
    if isinstance(optimizer, torch.optim.SGD):
        combined = getattr(optimizer, "use_combined_accum", False)
        return _OptimizerType.SGD1 if combined else _OptimizerType.SGD2
    if isinstance(optimizer, torch.optim.AdamW) or (
        isinstance(optimizer, torch.optim.Adam)
        and optimizer.defaults.get("decoupled_weight_decay", False)
    ):
        bias_correction = getattr(optimizer, "bias_correction", True)
        return _OptimizerType.ADAMW if bias_correction else _OptimizerType.ADAMW_NO_BIAS
    if isinstance(optimizer, torch.optim.Adam):
        return _OptimizerType.ADAM
    if isinstance(optimizer, torch.optim.RMSprop):
        centered = optimizer.param_groups[0]["centered"]
        for i, group in enumerate(optimizer.param_groups):
            if group["centered"] != centered:
                raise AssertionError(
                    "All parameter groups must have the same value for the 'centered' attribute "
                    f"(Group 0: {centered} / Group {i}: {group['centered']})"
                )
        return _OptimizerType.RMSPROP_CENTERED if centered else _OptimizerType.RMSPROP
    if isinstance(optimizer, optim.LAMB):
        corrected = optimizer.bias_correction
        return _OptimizerType.LAMB if corrected else _OptimizerType.LAMB_NO_BIAS
    supported = ", ".join(str(t) for t in _OptimizerType)
    raise AssertionError(
        f"Unsupported optimizer type {type(optimizer).__name__}. Types supported {supported}"
    )


def _toPoptorchClass(optimizer_type: _OptimizerType) -> Type[optim.Optimizer]:
    if optimizer_type in (_OptimizerType.SGD1, _OptimizerType.SGD2):
        return optim.SGD
    if optimizer_type == _OptimizerType.ADAM:
        return optim.Adam
    if optimizer_type in (_OptimizerType.ADAMW, _OptimizerType.ADAMW_NO_BIAS):
        return optim.AdamW
    if optimizer_type in (_OptimizerType.RMSPROP, _OptimizerType.RMSPROP_CENTERED):
        return optim.RMSprop
    return optim.LAMB


def _toCamelCase(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


# Values at which an attribute of a torch optimiser, which cannot say what is variable, is constant.
_CONSTANT_AT: Dict[str, Callable[[float], bool]] = {
    "lr": lambda value: False,
    "weight_decay": lambda value: value == 0.0,
    "momentum": lambda value: value == 0.0,
    "velocity_scaling": lambda value: value == 1.0,
    "dampening": lambda value: value == 0.0,
    "eps": lambda value: value == 1e-08,
    "max_weight_norm": lambda value: value == 65500.0,
    "alpha": lambda value: True,
    "nesterov": lambda value: True,
    "betas": lambda value: True,
    "loss_scaling": lambda value: value == 1.0,
}
_GROUP_DEFAULTS = {"velocity_scaling": 1.0}
_OPTIMIZER_DEFAULTS = {
    "accum_type": torch.float32,
    "velocity_accum_type": torch.float32,
    "first_order_momentum_accum_type": torch.float32,
    "second_order_momentum_accum_type": torch.float32,
    "use_tf_variant": False,
    "max_grad_norm": float("inf"),
    "loss_scaling": 1.0,
}
# Read elsewhere, or without effect on the device.
_NOT_SENT = ("bias_correction", "centered", "use_combined_accum")


def _requireNumber(value: Any, name: str) -> None:
    if not isinstance(value, numbers.Number):
        raise AssertionError(f"Expected a number for {name} but got {value} instead")


class _Reader:
    """Reads the attributes of one optimiser together with their constness."""

    def __init__(self, optimizer: torch.optim.Optimizer, kind: _OptimizerType, auto_ls: bool):
        self._optimizer = optimizer
        self._variable: Optional[optim.VariableAttributes] = getattr(
            optimizer, "variable_attrs", None
        )
        self._constant_at = dict(_CONSTANT_AT)
        if kind == _OptimizerType.ADAMW:
            self._constant_at["weight_decay"] = lambda value: value == 1e-2
        if auto_ls:
            self._constant_at["loss_scaling"] = lambda value: False

    def _isConst(self, name: str, value: Any) -> bool:
        if self._variable is not None:
            return self._variable.isConstant(name)
        return self._constant_at[name](value)

    def group(self, group: Dict[str, Any], name: str) -> Dict[str, ValueAndConst]:
        """Return a group's attribute under the name, or names, that the device knows."""
        value = group.get(name, _GROUP_DEFAULTS.get(name))
        if value is None:
            raise AssertionError(f"Mandatory attribute {name} not found in optimizer group")
        if name == "amsgrad":
            if value:
                raise ValueError("Only non-amsgrad Adam/AdamW optimizers are supported.")
            return {}
        if name == "betas":
            if not isinstance(value, tuple) or len(value) != 2:
                raise AssertionError(f"Expected a pair for betas but got {value} instead")
            _requireNumber(value[0], "betas[0]")
            _requireNumber(value[1], "betas[1]")
            const = self._isConst(name, value)
            return {"beta1": (value[0], const), "beta2": (value[1], const)}
        _requireNumber(value, name)
        new_name = "learningRate" if name == "lr" else _toCamelCase(name)
        return {new_name: (value, self._isConst(name, value))}

    def attribute(self, name: str) -> Any:
        """Return an attribute of the optimiser itself."""
        value: Any = getattr(self._optimizer, name, _OPTIMIZER_DEFAULTS[name])
        if value is None:
            raise AssertionError(f"Mandatory attribute {name} not found in optimizer attributes")
        if name.endswith("accum_type"):
            if value not in (torch.float16, torch.float32):
                raise ValueError(
                    f"{name} must be set to either torch.float16 or torch.float32 not {value}"
                )
            return value == torch.float16
        if name == "max_grad_norm" and math.isnan(value):
            raise ValueError("max_grad_norm must not be NaN")
        return value

    def lossScaling(self) -> Dict[str, ValueAndConst]:
        """Return the loss scaling, which all groups share."""
        value = self.attribute("loss_scaling")
        _requireNumber(value, "loss_scaling")
        return {"lossScaling": (value, self._isConst("loss_scaling", value))}


def _chooseReductionStrategy(
    optimizer: torch.optim.Optimizer, options: Options, is_compiled: bool
) -> None:
    """Let a float16 accumulator keep a running mean, which cannot overflow."""
    if getattr(optimizer, "accum_type", None) != torch.float16:
        return
    if getattr(optimizer, "use_combined_accum", False):
        return
    running = enums.MeanReductionStrategy.Running
    if not is_compiled:
        options._unfreeze()
        options.Training.setMeanAccumulationAndReplicationReductionStrategy(running)
        options._freeze()
    elif options.Training.meanAccumulationAndReplicationReductionStrategy != running:
        raise ValueError(
            "Invalid optimizer: the new optimizer would require changing "
            "options.Training.meanAccumulationAndReplicationReductionStrategy to "
            "poptorch.MeanReductionStrategy.Running but the executable is already compiled."
        )


def _warnOfWhatTheDeviceLacks(optimizer: torch.optim.Optimizer) -> None:
    if any(group.get("maximize", False) for group in optimizer.param_groups):
        logger.warning(
            "maximize=True has no effect on the device, which always minimises: negate the loss "
            "instead."
        )


def convertOptimizerToDict(
    optimizer: torch.optim.Optimizer,
    attr_tracker: OptimizerAttrTracker,
    options: Options,
    is_compiled: bool,
) -> Dict[str, Any]:
    """Return what the device is told of an optimiser.

    Returns:
        ``optimizer_type``, its fixed attributes under camel-case names, and ``defaults`` and
        ``groups``: the values of its variables, each with whether it is constant.

    """
    kind = _toPoptorchOptimizer(optimizer)
    attr_tracker.setType(kind)
    cls = _toPoptorchClass(kind)
    _chooseReductionStrategy(optimizer, options, is_compiled)
    auto_loss_scaling = options._Popart.options.get("automaticLossScalingSettings.enabled", False)
    variable_attrs = getattr(optimizer, "variable_attrs", None)
    if auto_loss_scaling and variable_attrs is not None:
        variable_attrs.markAsVariable("loss_scaling")
    reader = _Reader(optimizer, kind, auto_loss_scaling)

    result: Dict[str, Any] = {"optimizer_type": kind}
    for name in cls._child_only:
        if name not in (*cls._group_vars, *cls._child_vars, *_NOT_SENT):
            result[_toCamelCase(name)] = reader.attribute(name)
    group_vars = [name for name in cls._group_vars if name != "centered"]

    def readGroup(group: Dict[str, Any]) -> Dict[str, ValueAndConst]:
        values: Dict[str, ValueAndConst] = {}
        for name in group_vars:
            values.update(reader.group(group, name))
        return values

    result["defaults"] = {**readGroup(optimizer.defaults), **reader.lossScaling()}
    result["groups"] = [readGroup(group) for group in optimizer.param_groups]
    attr_tracker.check(optimizer)
    _warnOfWhatTheDeviceLacks(optimizer)
    logger.debug("Python optimizer %s", result)
    attr_tracker.enableChecks()
    return result


def _assertIsNumber(value: Any, name: str) -> None:
    assert isinstance(value, numbers.Number), (
        f"Expected a number for {name} but got {value} instead"
    )


__getattr__ = names.getter(__name__)
