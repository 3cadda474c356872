"""The layout of a run as ``poptorch.Options``."""

from __future__ import annotations

from typing import Any, Dict

import torch

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import IPUConfig, RunConfig
from ipu_proxynorm.config.compiler_options import engine_text, session_value
from ipu_proxynorm.ipu.distribution import ALONE, Instance, instance_options
from ipu_proxynorm.placement import OFF_CHIP, ON_CHIP, SHARDED
from ipu_proxynorm.recomputation import RECOMPUTATIONS

# PopART's AccumulateOuterFragmentSchedule::OverlapMemoryOptimized.
_MEMORY_OPTIMIZED = 3


def _common(run: RunConfig, instance: Instance) -> poptorch.Options:
    """Return what training and inference share: replicas, order of the stages, precision."""
    config = run.ipu
    options = instance_options(config, instance)
    options.randomSeed(run.seed)
    strategy = poptorch.PipelinedExecution
    if config.execution == SHARDED:
        strategy = poptorch.ShardedExecution
    options.setExecutionStrategy(strategy(poptorch.AutoStage.AutoIncrement))
    if config.available_memory_proportion is not None:
        given = config.available_memory_proportion
        proportions = given * stages(config) if len(given) == 1 else given
        options.setAvailableMemoryProportion(
            {f"IPU{ipu}": proportion for ipu, proportion in enumerate(proportions)}
        )
    options.Precision.enableStochasticRounding(config.stochastic_rounding)
    options.Precision.enableFloatingPointExceptions(config.floating_point_exceptions)
    if config.half_partials:
        options.Precision.setPartialsType(torch.float16)
    if config.auto_round_ipus:
        options.autoRoundNumIPUs(True)
    if config.executable_cache is not None:
        options.enableExecutableCaching(config.executable_cache)
    if config.io_tiles is not None:
        options.TensorLocations.numIOTiles(config.io_tiles)
    for name, value in session_options(run).items():
        options._Popart.set(name, value)
    return options


def session_options(run: RunConfig) -> Dict[str, Any]:
    """Return the session options that a run sets in training and in inference, by PopART's names.

    They have no setter of PopTorch's; ``_Popart.set`` is documented (``python/options.py:387``).
    """
    config = run.ipu
    found: Dict[str, Any] = {}
    if run.model.channel_grouping == "strided":
        found["groupNormStridedChannelGrouping"] = True
    if config.stable_norm:
        found["enableStableNorm"] = True
    engine = {name: engine_text(value) for name, value in config.engine.items()}
    if config.deterministic_workers:
        engine["target.deterministicWorkers"] = "portable"
    if engine:
        found["engineOptions"] = engine
    if config.half_partials:
        found["convolutionOptions"] = {"partialsType": "half"}  # as setPartialsType has it
    for name, value in config.popart.items():
        value = session_value(name, value)
        found[name] = {**found.get(name, {}), **value} if isinstance(value, dict) else value
    return found


def stages(config: IPUConfig) -> int:
    """Return the number of pipeline stages, each on its own IPU of a replica."""
    return len(config.splits) + 1


def training_options(run: RunConfig, instance: Instance = ALONE) -> poptorch.Options:
    """Return the options of training: outputs summed over the micro-batches of a host call.

    Batch Norm's running statistics are written in training, so each replica keeps its own.
    Automatic loss scaling is PopART's, experimental, on top of the optimiser's own loss scaling.
    """
    config, options = run.ipu, _common(run, instance)
    options.deviceIterations(config.device_iterations)
    options.Training.gradientAccumulation(config.gradient_accumulation)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.outputMode(poptorch.OutputMode.Sum)
    if run.optimizer.auto_loss_scaling:
        options.Training.setAutomaticLossScaling(True)
    if config.replication_factor > 1:
        options.broadcastBuffers(False)
    if config.optimizer_state != ON_CHIP:
        location = poptorch.TensorLocationSettings()
        location.useOnChipStorage(config.optimizer_state != OFF_CHIP)
        location.useReplicatedTensorSharding(config.optimizer_state == SHARDED)
        options.TensorLocations.setOptimizerLocation(location)
    for name, value in _training_only(config).items():
        if name not in config.popart:
            options._Popart.set(name, value)
    return options


def _training_only(config: IPUConfig) -> Dict[str, Any]:
    """Return the session options of recomputation and of the gradients' sums, by PopART's names."""
    found: Dict[str, Any] = {}
    if config.recomputation is not None:
        found["autoRecomputation"] = RECOMPUTATIONS[config.recomputation].value
        if stages(config) == 1 or config.execution == SHARDED:
            # In the program, where overlapped input and output find it, as Graphcore's CNNs have it
            # (examples v3.4.1, vision/cnns/pytorch/utils/ipu_settings.py:52).
            found["explicitRecomputation"] = True
    if config.merge_all_reduce:
        # Merging needs neighbours, which the default schedule, Serial, does not allow
        # (PopART's contiguatecollectivesformerging.cpp:44).
        found["accumulateOuterFragmentSettings.schedule"] = _MEMORY_OPTIMIZED
        collectives = "replicatedCollectivesSettings."
        found[f"{collectives}prepareScheduleForMergingCollectives"] = True
        found[f"{collectives}mergeAllReduceCollectives"] = True
    return found


def inference_options(run: RunConfig, instance: Instance = ALONE) -> poptorch.Options:
    """Return the options of inference: all outputs, and enough device iterations for the stages."""
    config, options = run.ipu, _common(run, instance)
    options.deviceIterations(max(config.inference_device_iterations, stages(config)))
    options.outputMode(poptorch.OutputMode.All)
    return options
