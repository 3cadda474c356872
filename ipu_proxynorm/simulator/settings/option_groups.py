"""The groups of options behind ``Options.Training``, ``.Precision``, ``.Distributed`` and so on."""

from __future__ import annotations

import copy
import os
from typing import Any, Dict, List, Set, Union

import torch

from .. import enums
from .._logging import logger
from .._options_impl import OptionsDict, require, requireAtLeastOne

PopartValue = Union[int, float, str, List[str], Set[str], Dict[str, Any]]


class _PopartOptions:
    """``Options._Popart``: options by PopART's own names, for those that have no setter here."""

    def __init__(self) -> None:
        self._is_frozen = False
        self.options: Dict[str, Any] = {}
        self.set("instrumentWithHardwareCycleCounter", False)
        self.set("rearrangeAnchorsOnHost", False)

    def __deepcopy__(self, memory: Dict[int, Any]) -> _PopartOptions:
        copied = _PopartOptions()
        memory[id(self)] = copied
        copied.options = copy.deepcopy(self.options, memory)
        return copied

    def checkIsFrozen(self, option: object = None) -> None:
        """Raise if a model or data loader already uses these options."""
        if self._is_frozen:
            raise AttributeError("Can't modify frozen Options")

    def set(self, key: str, value: PopartValue) -> _PopartOptions:
        """Set the option of that name; names and types are checked when a model compiles."""
        self.checkIsFrozen()
        self.options[key] = value
        return self

    def setEngineOptions(self, engine_options: Dict[str, str]) -> _PopartOptions:
        """Options of the Poplar engine."""
        return self.set("engineOptions", engine_options)

    def setPatterns(self, patterns: Dict[str, bool], level: int = 2) -> _PopartOptions:
        """Switch patterns of PopART's compiler on or off, starting from a level's defaults."""
        require(isinstance(level, int), f"level must be an integer but got {level!r}")
        require(isinstance(patterns, dict), f"patterns must be a dictionary but got {patterns!r}")
        self.set("patterns_level", level)
        return self.set("patterns", patterns)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.options.items())})"


class _JitOptions(OptionsDict):
    """``Options.Jit``: what is left of tracing with torch.jit."""

    def traceModel(self, trace_model: bool) -> _JitOptions:
        """Do not use: deprecated; only False is accepted."""
        logger.warning(
            "[Deprecated] Do not call options.Jit.traceModel(): "
            "options.Jit.traceModel(False) is now the default, "
            "and True is no longer supported, therefore this "
            "function will be removed shortly"
        )
        if trace_model:
            raise ValueError("options.Jit.traceModel(True) is no longer supported")
        return self


class _PrecisionOptions(OptionsDict):
    """``Options.Precision``."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__()

    def halfFloatCasting(
        self, half_float_casting: enums.HalfFloatCastingBehavior
    ) -> _PrecisionOptions:
        """Do not use: deprecated; mixed operands always upcast to float32."""
        logger.warning(
            "[Deprecated] Do not call options.Precision.halfFloatCasting(): "
            "HalfUpcastToFloat is now the only supported option "
            "and matches PyTorch's behaviour so you don't need "
            "to explicitly set it."
        )
        return self

    def runningStatisticsAlwaysFloat(self, value: bool) -> _PrecisionOptions:
        """Do not use: deprecated; running statistics keep the type of their module."""
        if not isinstance(value, bool):
            raise ValueError("runningStatisticsAlwaysFloat needs to be set to a bool")
        logger.warning(
            "[Deprecated] Do not call options.Precision.runningStatisticsAlwaysFloat(): "
            "False is now the only supported option "
            "and matches PyTorch's behaviour so you don't need "
            "to explicitly set it."
        )
        return self

    def enableFloatingPointExceptions(self, enabled: bool) -> _PrecisionOptions:
        """Raise when an operation divides by zero, overflows or makes a NaN."""
        require(
            isinstance(enabled, bool), "enableFloatingPointExceptions needs to be set to a bool"
        )
        self._popart_options.set("enableFloatingPointChecks", enabled)
        return self

    def enableStochasticRounding(self, enabled: bool) -> _PrecisionOptions:
        """Round to float16 up or down at random, so that the mean of the result is exact."""
        self._popart_options.set("enableStochasticRounding", enabled)
        return self

    def setPartialsType(self, dtype: torch.dtype) -> _PrecisionOptions:
        """Type in which matrix multiplications and convolutions sum: float32 or float16."""
        if dtype == torch.float32:
            name = "float"
        elif dtype == torch.float16:
            name = "half"
        else:
            raise ValueError(
                "parameter to setPartialsType should be either torch.float or torch.half but got "
                f"{dtype}"
            )
        self._popart_options.set("partialsTypeMatMuls", name)
        self._popart_options.set("convolutionOptions", {"partialsType": name})
        return self


class _TrainingOptions(OptionsDict):
    """``Options.Training``."""

    def __init__(self, popart_options: _PopartOptions) -> None:
        self._popart_options = popart_options
        super().__init__(
            gradient_accumulation=1,
            accumulation_and_replication_reduction_type=enums.ReductionType.Mean,
            meanAccumulationAndReplicationReductionStrategy=enums.MeanReductionStrategy.Post,
        )

    def gradientAccumulation(self, gradient_accumulation: int) -> _TrainingOptions:
        """Micro-batches whose gradients are accumulated for one weight update."""
        requireAtLeastOne("gradientAccumulation", gradient_accumulation)
        self.set(gradient_accumulation=gradient_accumulation)
        return self

    def accumulationAndReplicationReductionType(
        self, reduction_type: enums.ReductionType
    ) -> _TrainingOptions:
        """Whether gradients of micro-batches and replicas are averaged (default) or summed."""
        allowed = (enums.ReductionType.Mean, enums.ReductionType.Sum)
        if not isinstance(reduction_type, enums.ReductionType) or reduction_type not in allowed:
            raise ValueError(
                "accumulationAndReplicationReductionType must be set to "
                "poptorch.ReductionType.Mean or poptorch.ReductionType.Sum"
            )
        self.set(accumulation_and_replication_reduction_type=reduction_type)
        return self

    def setMeanAccumulationAndReplicationReductionStrategy(
        self, mean_reduction_strategy: enums.MeanReductionStrategy
    ) -> _TrainingOptions:
        """Say when the mean divides: ``Running`` with float16 accumulators, else ``Post``."""
        self.set(meanAccumulationAndReplicationReductionStrategy=mean_reduction_strategy)
        return self

    def setAutomaticLossScaling(self, enabled: bool) -> _TrainingOptions:
        """Let the device adjust the loss scaling from the gradients' range."""
        self._popart_options.set("automaticLossScalingSettings.enabled", enabled)
        return self

    def setConvolutionDithering(self, enabled: bool) -> _TrainingOptions:
        """Start convolutions on different tiles, for a better balance."""
        self._popart_options.set("convolutionOptions", {"enableConvDithering": enabled})
        return self


class _DistributedOptions(OptionsDict):
    """``Options.Distributed``: the processes that a run is spread over."""

    def __init__(self) -> None:
        self._gcd_mappings: Dict[int, int] = {}
        super().__init__(num_distributed_processes=1, distributed_process_id=0, ipuof_configs={})
        self.setEnvVarNames("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")

    def disable(self) -> _DistributedOptions:
        """One process, whatever the environment says."""
        return self.configureProcessId(0, 1)

    def setEnvVarNames(self, var_num_processes: str, var_process_id: str) -> _DistributedOptions:
        """Read the number of processes and this process's id from environment variables."""
        return self.configureProcessId(
            int(os.environ.get(var_process_id, "0")), int(os.environ.get(var_num_processes, "1"))
        )

    def configureProcessId(self, process_id: int, num_processes: int) -> _DistributedOptions:
        """Say that this is process ``process_id`` of ``num_processes``."""
        self.set(distributed_process_id=process_id, num_distributed_processes=num_processes)
        return self

    @property
    def processId(self) -> int:
        """The id of this process, from 0."""
        return self.distributed_process_id

    @property
    def numProcesses(self) -> int:
        """The number of processes."""
        return self.num_distributed_processes
