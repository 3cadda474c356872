"""``poptorch.Options``: how a model is compiled and run."""

from __future__ import annotations

import copy
import os
from typing import Any, Dict, List, Optional, Tuple

import torch

from . import _options_config, _options_impl, enums
from ._logging import logger
from ._options_config import ConfigFileError
from ._options_impl import require, requireAtLeastOne
from .alias import names
from .settings.attribute import Attribute
from .settings.execution_strategy import (
    BlockId,
    BlockPlacement,
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
    _IExecutionStrategy,
)
from .settings.option_groups import (
    _DistributedOptions,
    _JitOptions,
    _PopartOptions,
    _PrecisionOptions,
    _TrainingOptions,
)
from .settings.tensor_locations import TensorLocationSettings, _TensorLocationOptions

__all__ = [
    "Attribute",
    "BlockId",
    "BlockPlacement",
    "ConfigFileError",
    "Options",
    "ParallelPhasedExecution",
    "Phase",
    "PipelinedExecution",
    "SerialPhasedExecution",
    "ShardedExecution",
    "Stage",
    "TensorLocationSettings",
]

_NO_LIMIT = (1 << 64) - 1


class Options(_options_impl.OptionsDict):
    """All options of a model. Setters return the options, so that calls chain.

    Options are frozen once a model or a data loader uses them; ``clone`` gives a copy that is not.
    ``POPTORCH_DEFAULT_OPTIONS`` (JSON, see ``from_json``) and ``POPTORCH_CACHE_DIR`` are read here.
    """

    def __init__(self) -> None:
        self._jit = _JitOptions()
        self._popart = _PopartOptions()
        self._graphProcessing = _PrecisionOptions(self._popart)
        self._training = _TrainingOptions(self._popart)
        self._distributed = _DistributedOptions()
        self._tensor_locations = _TensorLocationOptions()
        self._execution_strategy: _IExecutionStrategy = PipelinedExecution()
        self._source_location_excludes = list(_options_impl.default_source_location_excludes)
        self._progress_bar = _options_impl.ProgressBar()
        self._relax_optimizer_checks = False
        self._show_compilation_progress_bar = True
        self._module_namescope_enabled = True
        super().__init__(
            replication_factor=1,
            input_group_size=1,
            input_cgt=enums.CommGroupType.Consecutive,
            broadcast_buffers=True,
            device_iterations=1,
            log_dir=".",
            max_repeat_logs=4,
            auto_round_num_ipus=False,
            anchored_tensors={},
            output_mode=enums.OutputMode.Default.value,
            output_return_period=1,
            connection_type=enums.ConnectionType.Always.value,
            sync_pattern=enums.SyncPattern.Full.value,
            available_memory_proportion={},
        )
        cache_dir = os.environ.get("POPTORCH_CACHE_DIR", "")
        if cache_dir:
            logger.info("POPTORCH_CACHE_DIR is set: setting cache path to %s", cache_dir)
            self.enableExecutableCaching(cache_dir)
        self.from_json(os.environ.get("POPTORCH_DEFAULT_OPTIONS", "{}"))

    def from_json(self, string: str) -> Options:
        """Call setters from JSON: ``{"Training.gradientAccumulation": 4}``.

        A list is a list of arguments; a string such as ``"OutputMode.All"`` stands for the enum.
        """
        _options_config.setFromJson(self, string)
        return self

    def loadFromFile(self, filepath: str) -> Options:
        """Run a file of setter calls, one a line, without the leading ``options.``.

        Raises:
            ConfigFileError: a line is not valid Python.

        """
        _options_config.parseAndSetOptions(self, filepath)
        return self

    # Groups of options

    @property
    def TensorLocations(self) -> _TensorLocationOptions:
        """Where tensors are stored."""
        return self._tensor_locations

    @property
    def Distributed(self) -> _DistributedOptions:
        """The processes that the run is spread over."""
        return self._distributed

    @property
    def Jit(self) -> _JitOptions:
        """Deprecated tracing options."""
        return self._jit

    @property
    def Precision(self) -> _PrecisionOptions:
        """Number formats and rounding."""
        return self._graphProcessing

    @property
    def Training(self) -> _TrainingOptions:
        """Options that only training models may have."""
        return self._training

    @property
    def _Popart(self) -> _PopartOptions:
        """Options by PopART's own names."""
        return self._popart

    # What runs, how often, on how many replicas

    def deviceIterations(self, device_iterations: int) -> Options:
        """Weight updates, or inference micro-batches, for each call from the host."""
        requireAtLeastOne("deviceIterations", device_iterations)
        self.set(device_iterations=device_iterations)
        return self

    def replicationFactor(self, replication_factor: int) -> Options:
        """Make copies of the model, each on its own IPUs."""
        requireAtLeastOne("replicationFactor", replication_factor)
        self.set(replication_factor=replication_factor)
        return self

    def inputReplicaGrouping(
        self, input_group_size: int, input_group_type: enums.CommGroupType
    ) -> Options:
        """Feed the same input to all replicas of a group, formed as ``CommGroupType`` says."""
        if input_group_type == enums.CommGroupType.NoGrouping:
            input_group_size = 1
            input_group_type = enums.CommGroupType.Consecutive
        if input_group_type == enums.CommGroupType.All:
            raise ValueError("input_group_type cannot be All")
        if self.replication_factor < input_group_size:
            raise ValueError("input_group_size cannot be larger than replication_factor")
        if self.replication_factor % input_group_size != 0:
            raise ValueError("input_group_size must be a factor of replication_factor")
        self.set(input_group_size=input_group_size, input_cgt=input_group_type)
        return self

    def broadcastBuffers(self, broadcast_buffers: bool = True) -> Options:
        """Whether all replicas share one set of buffers; with False each keeps its own."""
        self.set(broadcast_buffers=broadcast_buffers)
        return self

    def autoRoundNumIPUs(self, auto_round_num_ipus: bool = True) -> Options:
        """Round the number of IPUs up to a power of 2 instead of refusing it."""
        self.set(auto_round_num_ipus=auto_round_num_ipus)
        return self

    def setExecutionStrategy(self, strategy: _IExecutionStrategy) -> Options:
        """How the model's blocks are laid out over stages, phases and IPUs."""
        require(
            isinstance(strategy, _IExecutionStrategy),
            f"strategy must be one of poptorch's execution strategies but got {strategy!r}",
        )
        self._execution_strategy = strategy
        return self

    def setAvailableMemoryProportion(
        self, available_memory_proportion: Dict[str, float]
    ) -> Options:
        """SRAM for temporary data of convolutions and the like, by IPU: ``{"IPU0": 0.5}``."""
        for key in available_memory_proportion:
            require(
                key.startswith("IPU"),
                'Available memory proportions are expected to be in a dictionary of {"IPU0": 0.5} '
                f"where the 0 in IPU is the index of the IPU. Invalid key: {key}",
            )
        proportions = {int(key[3:]): value for key, value in available_memory_proportion.items()}
        self.createOrSet(available_memory_proportion=proportions)
        return self

    # What comes back

    def outputMode(
        self, output_mode: enums.OutputMode, output_return_period: Optional[int] = None
    ) -> Options:
        """Which outputs return; ``EveryN`` needs its period, other modes ignore it."""
        require(
            isinstance(output_mode, enums.OutputMode),
            f"output_mode must be a poptorch.OutputMode but got {output_mode!r}",
        )
        if output_mode == enums.OutputMode.EveryN:
            require(
                output_return_period and output_return_period > 0,
                "EveryN anchor must have output_return_period set to valid positive integer",
            )
        elif output_return_period:
            logger.info(
                "Anchor return period argument ignored with output_mode set to %s", output_mode
            )
        self.set(output_mode=output_mode.value, output_return_period=output_return_period or 1)
        return self

    def defaultOutputMode(self) -> bool:
        """Whether the output mode is still to be chosen by the kind of model."""
        return self.output_mode == enums.OutputMode.Default

    def anchorTensor(
        self,
        short_name: str,
        long_name: str,
        output_mode: Optional[enums.OutputMode] = None,
        output_return_period: Optional[int] = 1,
    ) -> None:
        """Keep the tensor called ``long_name`` for ``getAnchoredTensor(short_name)``.

        Without an output mode the model's own applies.
        """
        if output_mode != enums.OutputMode.EveryN:
            output_return_period = 1
        self.anchored_tensors[short_name] = [
            long_name,
            output_mode is None,
            output_mode,
            output_return_period,
        ]

    # Devices

    def useIpuModel(self, use_model: bool) -> Options:
        """Ask for the IPU Model rather than hardware; wins over ``POPTORCH_IPU_MODEL``."""
        self.createOrSet(use_model=use_model)
        return self

    def connectionType(self, connection_type: enums.ConnectionType) -> Options:
        """When to attach to a device."""
        require(
            isinstance(connection_type, enums.ConnectionType),
            f"connection_type must be a poptorch.ConnectionType but got {connection_type!r}",
        )
        self.set(connection_type=connection_type.value)
        return self

    def syncPattern(self, sync_pattern: enums.SyncPattern) -> Options:
        """Which IPUs wait for each other."""
        require(
            isinstance(sync_pattern, enums.SyncPattern),
            f"sync_pattern must be a poptorch.SyncPattern but got {sync_pattern!r}",
        )
        self.set(sync_pattern=sync_pattern.value)
        return self

    def useIpuId(self, ipu_id: int) -> Options:
        """Run on the device (one or more IPUs) of that id."""
        require(isinstance(ipu_id, int), f"ipu_id must be an integer but got {ipu_id!r}")
        self.createOrSet(ipu_id=ipu_id)
        return self

    def useOfflineIpuTarget(self, ipu_version: int = 2) -> Options:
        """Compile without a device, for Mk1 (1), Mk2 (2) or Mk2 with float8 (21)."""
        self.connectionType(enums.ConnectionType.Never)
        self.createOrSet(ipu_version=ipu_version)
        return self

    # Numbers

    def randomSeed(self, random_seed: int) -> Options:
        """Seed of the device's generator; seeds torch on the host too."""
        require(
            isinstance(random_seed, int), f"random_seed must be an integer but got {random_seed!r}"
        )
        torch.manual_seed(random_seed)
        self.createOrSet(random_seed=random_seed)
        return self

    def enableStableNorm(self, enabled: bool) -> Options:
        """Compute the variance of normalizations in two passes: slower and more accurate."""
        self._Popart.set("enableStableNorm", enabled)
        return self

    def enableSyntheticData(self, enabled: bool) -> Options:
        """Replace host input and output by random numbers made on the device."""
        # PopART's SyntheticDataMode: 0 off, 1 zeros, 2 random normal.
        self._Popart.set("syntheticDataMode", 2 if enabled else 0)
        return self

    # Logs, names, caches, profiles

    def relaxOptimizerAttributesChecks(self, relax: bool = True) -> Options:
        """Report unexpected optimiser attributes to the debug log instead of as warnings."""
        self._relax_optimizer_checks = relax
        return self

    def sourceLocationExcludes(self, excludes: List[str]) -> Options:
        """Leave frames with any of these strings out of the locations of operators."""
        self._source_location_excludes = excludes
        return self

    def appendToLocationExcludes(self, *excludes: str) -> Options:
        """Add to the strings of ``sourceLocationExcludes``."""
        self._source_location_excludes += excludes
        return self

    def showCompilationProgressBar(self, show: bool = True) -> Options:
        """Whether compiling reports its progress."""
        self._show_compilation_progress_bar = show
        return self

    def logDir(self, log_dir: str) -> Options:
        """Directory for log files."""
        self.set(log_dir=log_dir)
        return self

    def maxRepeatLogs(self, max_lines: Optional[int]) -> Options:
        """How often the same log line is repeated; None for no limit."""
        self.set(max_repeat_logs=_NO_LIMIT if max_lines is None else max_lines)
        return self

    def modelName(self, name: str) -> Options:
        """Name of the model in profiles."""
        self.createOrSet(model_name=name)
        return self

    def enableExecutableCaching(self, path: Optional[str]) -> Options:
        """Directory in which compiled programs are kept; None for no caching."""
        self._Popart.set("enableEngineCaching", path is not None)
        if path is not None:
            self._Popart.set("cachePath", path)
        return self

    def logCycleCount(self, log_cycle_count: bool) -> Options:
        """Count the cycles of a run; needs hardware."""
        self._Popart.set("instrumentWithHardwareCycleCounter", log_cycle_count)
        return self

    def enableProfiling(self, profile_dir: Optional[str] = None) -> Options:
        """Ask for a profile in that directory (default: the current one)."""
        environment = os.getenv("POPLAR_ENGINE_OPTIONS", default="")
        overriding = ("debug.allowOutOfMemory", "autoReport.directory", "autoReport.all")
        if any(key in environment for key in overriding):
            logger.warning(
                "Profiling setting overridden by environment variable. "
                "Check content of POPLAR_ENGINE_OPTIONS."
            )
        engine_options = self._popart.options.get("engineOptions", {})
        engine_options["debug.allowOutOfMemory"] = "true"
        engine_options["autoReport.directory"] = profile_dir or "."
        engine_options["autoReport.all"] = "true"
        self._popart.setEngineOptions(engine_options)
        return self

    def disableModuleNamescope(self) -> Options:
        """Do not prefix operators' names with the names of the modules they come from."""
        self._module_namescope_enabled = False
        return self

    def updatableNamedBuffers(self, buffers: List[str]) -> Options:
        """Buffers that ``copyNamedBuffersToDevice`` uploads."""
        self._Popart.set("updatableNamedBuffers", buffers)
        return self

    # The whole

    def toDict(self) -> Dict[str, Any]:
        """All options, groups included, as one dictionary; an output mode must be set."""
        require(not self.defaultOutputMode(), "An output mode must be picked before serialisation")
        out = self._execution_strategy.backendOptions()
        out.update(self._popart.options)
        out = self.update(out)
        for group in (self._training, self._distributed, self._tensor_locations):
            out = group.update(out)
        if self._show_compilation_progress_bar:
            out["compilation_progress_bar_fn"] = self._progress_bar
        return out

    def clone(self) -> Options:
        """Return a deep copy that is not frozen."""
        return copy.deepcopy(self)

    def __repr__(self) -> str:
        groups = [name for name in dir(type(self)) if _isProperty(type(self), name)]
        shown: List[Tuple[str, Any]] = [*self._values.items()]
        shown += [(name, getattr(self, name)) for name in groups]
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown)})"


def _isProperty(cls: type, name: str) -> bool:
    return isinstance(getattr(cls, name, None), property)


__getattr__ = names.getter(__name__)
