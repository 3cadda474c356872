"""The optimiser as it lives on the device: scalars, state, and one weight update at a time."""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import torch
from torch import Tensor

from .. import enums
from .._logging import logger
from .._optimizer_attributes import OptimizerAttrTracker, _OptimizerType, convertOptimizerToDict
from ..options import Options
from ..poptorch_core import createError
from ..trace.arithmetic.dtypes import round_stochastically
from ..trace.loss_scale import AutomaticLossScale, is_enabled
from .adam import AdamRule
from .replacement import refusal, replaced
from .rmsprop import RmspropRule
from .sgd import CombinedSgdRule, SgdRule
from .value_checks import check_values, float32
from .weight_update import Factors, MomentTypes, Scalars, State, Values

_Rule = Union[SgdRule, AdamRule, RmspropRule]
_LOSS_SCALING = "lossScaling_FLOAT"
_UPDATE_FACTOR = "lossScaleUpdateFactor"


class _Update(NamedTuple):
    """One parameter's update, half done."""

    scalars: Scalars
    param: Tensor
    state: State
    updater: Tensor
    #: What is stored in float16, each with its float32 copy that the update is computed on.
    rounded: List[Tuple[Tensor, Tensor]]


def _dtype(is_float16: bool) -> torch.dtype:
    return torch.float16 if is_float16 else torch.float32


def _makeRule(attributes: Dict[str, Any], factors: Factors) -> _Rule:
    kind = attributes["optimizer_type"]
    if kind == _OptimizerType.SGD1:
        return CombinedSgdRule(factors, torch.float32)
    if kind == _OptimizerType.SGD2:
        return SgdRule(factors, _dtype(attributes["velocityAccumType"]))
    types = MomentTypes(
        _dtype(attributes["accumType"]),
        _dtype(attributes["firstOrderMomentumAccumType"]),
        _dtype(attributes["secondOrderMomentumAccumType"]),
    )
    if kind in (_OptimizerType.RMSPROP, _OptimizerType.RMSPROP_CENTERED):
        return RmspropRule(
            factors,
            types,
            centered=kind == _OptimizerType.RMSPROP_CENTERED,
            tf_variant=bool(attributes["useTfVariant"]),
        )
    return AdamRule(
        factors,
        types,
        decoupled=kind != _OptimizerType.ADAM,
        # PopTorch maps AdamW without bias correction to plain Adam, which corrects it.
        corrected=kind != _OptimizerType.LAMB_NO_BIAS,
        lamb=kind in (_OptimizerType.LAMB, _OptimizerType.LAMB_NO_BIAS),
    )


def makeFactors(options: Options) -> Factors:
    """How the options reduce gradients over micro-batches, replicas and processes."""
    training = options.Training
    strategy = training.meanAccumulationAndReplicationReductionStrategy
    return Factors(
        accumulation=training.gradient_accumulation,
        replication=options.replication_factor * options.Distributed.numProcesses,
        mean=training.accumulation_and_replication_reduction_type == enums.ReductionType.Mean,
        post=strategy == enums.MeanReductionStrategy.Post,
    )


class DeviceOptimizer:
    """The optimiser of a compiled training model.

    Args:
        optimizer: the host's optimiser, torch's or PopTorch's.
        named_parameters: the device's parameters by the name they have in the model.
        options: the model's options.
        attributes: ``convertOptimizerToDict``'s result, if the caller has it.
        host_parameters: the host's parameters by the same names: those that the optimiser holds.
            Without it the optimiser holds the device's own.

    Raises:
        Error: the optimiser holds a value that the device refuses.

    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        named_parameters: Mapping[str, Tensor],
        options: Options,
        attributes: Optional[Dict[str, Any]] = None,
        host_parameters: Optional[Mapping[str, Tensor]] = None,
    ) -> None:
        self._options = options
        self._parameters = dict(named_parameters)
        hosts = named_parameters if host_parameters is None else host_parameters
        # By address, as PopTorch does (_poplar_executor.py:817). They are held, so that no later
        # optimiser's parameter gets the address of one of these.
        self._hosts = [tensor.detach() for tensor in hosts.values()]
        self._names = {tensor.data_ptr(): name for name, tensor in hosts.items()}
        self._attributes = self._convert(optimizer, attributes, is_compiled=False)
        self._rule = _makeRule(self._attributes, makeFactors(options))
        self._group_of = self._matchGroups(optimizer)
        check_values(self._attributes, set(self._group_of.values()))
        self._values: Dict[str, Values] = {}
        self._scalars: Dict[str, Scalars] = {}
        self._constants: Dict[str, List[str]] = {}
        self._setValues()
        popart_options = options._Popart.options
        stochastic = popart_options.get("enableStochasticRounding", False)
        self._round = round_stochastically if stochastic else torch.Tensor.half
        self._automatic: Optional[AutomaticLossScale] = None
        if is_enabled(popart_options):
            self._automatic = AutomaticLossScale(popart_options)
        self._state: Dict[str, State] = {
            name: self._rule.state(self._parameters[name], self._values[name], scalars)
            for name, scalars in self._scalars.items()
        }

    def _convert(
        self,
        optimizer: torch.optim.Optimizer,
        attributes: Optional[Dict[str, Any]],
        is_compiled: bool,
    ) -> Dict[str, Any]:
        if attributes is not None:
            return attributes
        tracker = OptimizerAttrTracker(self._options)
        return convertOptimizerToDict(optimizer, tracker, self._options, is_compiled)

    def _matchGroups(self, optimizer: torch.optim.Optimizer) -> Dict[str, int]:
        group_of = {}
        for index, group in enumerate(optimizer.param_groups):
            for param in group["params"]:
                # Those of integers, which are constants, have no name here.
                name = self._names.get(param.data_ptr())
                if name is not None:
                    group_of[name] = index
        return group_of

    def _setValues(self) -> None:
        """Compute every parameter's scalars from the attributes.

        They are float32 from the first step on, constants too, as PopTorch hands values over
        (``python/poptorch.cpp:337``, ``CompilerTypes.hpp:78``) and PopART computes with them
        (``optimizer.hpp``): training that goes on from a saved state is training in a row.
        """
        loss_scaling = self._attributes["defaults"]["lossScaling"]
        loss_scaling = (float32(loss_scaling[0]), loss_scaling[1])
        self._loss_scaling = loss_scaling[0]
        self._loss_scaling_const = bool(loss_scaling[1])
        for name, group in self._group_of.items():
            values = {
                key: (float32(value), const)
                for key, (value, const) in self._attributes["groups"][group].items()
            }
            values["lossScaling"] = loss_scaling
            scalars = self._rule.scalars(values)
            self._values[name] = values
            self._scalars[name] = {key: float32(value) for key, (value, _) in scalars.items()}
            self._constants[name] = [key for key, (_, const) in scalars.items() if const]

    @property
    def loss_scaling(self) -> float:
        """What the loss is multiplied by before the backward pass of the next step."""
        if self._automatic is None:
            return self._loss_scaling
        return self._loss_scaling * float(self._automatic.factor)

    @property
    def attributes(self) -> Dict[str, Any]:
        """The attributes in force, as ``convertOptimizerToDict`` gives them."""
        return self._attributes

    def accumulatorType(self, name: str) -> torch.dtype:
        """Return the type in which this parameter's gradients are accumulated.

        The parameter's own with a combined accumulator or for a parameter no optimiser holds.
        """
        if name not in self._group_of or "accumType" not in self._attributes:
            return self._parameters[name].dtype
        if isinstance(self._rule, CombinedSgdRule):
            return self._parameters[name].dtype
        return _dtype(self._attributes["accumType"])

    def holds(self, name: str) -> bool:
        """Whether the optimiser updates the parameter of that name."""
        return name in self._group_of

    def update(
        self, optimizer: torch.optim.Optimizer, attributes: Optional[Dict[str, Any]] = None
    ) -> None:
        """Put changed attributes into force; the state stays.

        Raises:
            Error: the kind of optimiser or a constant attribute differs from what was compiled, a
                group is gone, or a value is refused.

        """
        new = self._convert(optimizer, attributes, is_compiled=True)
        groups = set(self._group_of.values())
        check_values(new, groups)
        reason = refusal(self._attributes, new, groups)
        if reason is not None:
            raise createError(
                f"Can not replace the optimizer of a compiled model: {reason}. Compile the model "
                "again or mark the attribute as variable before the first run.",
                layer="popart_exception",
            )
        if self._matchGroups(optimizer) != self._group_of:
            # CompilerImpl.cpp:803
            logger.warning(
                "The parameters of the optimizer's groups differ from those that the model was "
                "compiled for, which stay: only the attributes of the groups change."
            )
        self._attributes = replaced(self._attributes, new)
        self._setValues()

    def step(self, grads: Mapping[str, Optional[Tensor]]) -> None:
        """One weight update of all parameters in place.

        Args:
            grads: gradients by parameter name, of the loss times ``loss_scaling``, already averaged
                or summed over micro-batches and replicas as the options say. A parameter that the
                loss does not reach (None, or no entry) is not in the program: it stays as it is.

        """
        with torch.no_grad():
            found = ((name, grads.get(name)) for name in self._group_of)
            held = {name: grad for name, grad in found if grad is not None}
            unscale = 1.0 if self._automatic is None else 1.0 / float(self._automatic.factor)
            begun = (self._begin(name, grad, unscale) for name, grad in held.items())
            max_norm = self._attributes.get("maxGradNorm", math.inf)
            for update in begun if max_norm == math.inf else self._clipped(list(begun), max_norm):
                self._finish(update, unscale)

    def observe(self, counts: Tensor) -> None:
        """Change the loss scaling by the step's ``GradientCounts``, if it is automatic."""
        if self._automatic is not None:
            self._automatic.observe(counts)

    def _begin(self, name: str, grad: Tensor, unscale: float) -> _Update:
        """Compute one parameter's updater; what is stored in float16 is computed in float32."""
        param, state = self._parameters[name], self._state[name]
        stored = [t for t in (param, *state.values()) if t.dtype == torch.float16]
        rounded = [(tensor, tensor.float()) for tensor in stored]
        if rounded:
            wide = {id(tensor): copied for tensor, copied in rounded}
            param = wide.get(id(param), param)
            state = {key: wide.get(id(tensor), tensor) for key, tensor in state.items()}
        scalars = self._scalars[name]
        updater = self._rule.updater(param, grad.to(param.dtype), scalars, state, unscale)
        return _Update(scalars, param, state, updater, rounded)

    def _clipped(self, updates: List[_Update], max_norm: float) -> List[_Update]:
        """Scale the updaters so that their common norm, as PopART has them, is ``max_norm``."""
        norms = [u.updater.float().norm() * self._rule.excess(u.scalars) for u in updates]
        if not norms:
            return updates
        factor = max_norm / torch.stack(norms).norm().clamp(min=max_norm)
        return [u._replace(updater=u.updater * factor.to(u.updater.dtype)) for u in updates]

    def _finish(self, update: _Update, unscale: float) -> None:
        scalars, param, state, updater, rounded = update
        self._rule.finish(param, updater, scalars, state, unscale)
        for stored, wide in rounded:
            stored.copy_(self._round(wide))

    def scalarNames(self) -> List[str]:
        """Return the names of all scalars, constant or not."""
        return [
            f"{key}___specific___{name}" for name, values in self._scalars.items() for key in values
        ]

    # What state_dict and load_state_dict see

    def ipu_state(self) -> Dict[str, Tensor]:
        """Return copies of the state, as ``Accl1___weight`` and so on."""
        tensors = {
            f"{key}___{name}": tensor.clone().cpu()
            for name, state in self._state.items()
            for key, tensor in state.items()
        }
        if self._automatic is not None:
            tensors[_UPDATE_FACTOR] = self._automatic.factor.clone()
        return tensors

    def ipu_param(self) -> Dict[str, Tensor]:
        """Return the scalars that may change, as ``learningRate___specific___weight`` and so on."""
        scalars = {
            f"{key}___specific___{name}": torch.tensor(value, dtype=torch.float32)
            for name, values in self._scalars.items()
            for key, value in values.items()
            if key not in self._constants[name]
        }
        if not self._loss_scaling_const:
            scalars[_LOSS_SCALING] = torch.tensor(self._loss_scaling, dtype=torch.float32)
        return scalars

    def load(
        self,
        ipu_state: Mapping[str, Tensor],
        ipu_param: Mapping[str, Tensor],
    ) -> None:
        """Overwrite state and scalars; what is missing keeps its value, with a warning."""
        if self._automatic is not None and _UPDATE_FACTOR in ipu_state:
            self._automatic.factor.copy_(ipu_state[_UPDATE_FACTOR])
        for name, state in self._state.items():
            for key, tensor in state.items():
                loaded = ipu_state.get(f"{key}___{name}")
                if loaded is None:
                    logger.warning("writeOptimizerState: ignoring missing state %s___%s", key, name)
                else:
                    tensor.copy_(loaded)
        for name, scalars in self._scalars.items():
            for key in scalars:
                if key in self._constants[name]:
                    continue
                full_name = f"{key}___specific___{name}"
                loaded = ipu_param.get(full_name)
                if loaded is None:
                    logger.warning("writeOptimizerState: ignoring missing parameter %s", full_name)
                else:
                    scalars[key] = float(loaded)
        loss_scaling = ipu_param.get(_LOSS_SCALING)
        if loss_scaling is not None and not self._loss_scaling_const:
            self._loss_scaling = float(loss_scaling)
