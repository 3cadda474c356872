"""The layout of a run as ``poptorch.Options``."""

from __future__ import annotations

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import IPUConfig


def _common(config: IPUConfig, seed: int) -> poptorch.Options:
    """Return what training and inference share: replicas, order of the stages, precision."""
    options = poptorch.Options()
    options.replicationFactor(config.replication_factor)
    options.randomSeed(seed)
    strategy = poptorch.PipelinedExecution
    if config.execution == "sharded":
        strategy = poptorch.ShardedExecution
    options.setExecutionStrategy(strategy(poptorch.AutoStage.AutoIncrement))
    if config.available_memory_proportion is not None:
        options.setAvailableMemoryProportion(
            {f"IPU{ipu}": config.available_memory_proportion for ipu in range(stages(config))}
        )
    options.Precision.enableStochasticRounding(config.stochastic_rounding)
    return options


def stages(config: IPUConfig) -> int:
    """Return the number of pipeline stages, each on its own IPU of a replica."""
    return len(config.splits) + 1


def training_options(config: IPUConfig, seed: int) -> poptorch.Options:
    """Return the options of training: outputs summed over the micro-batches of a host call.

    Batch Norm's running statistics are written in training, so each replica keeps its own.
    """
    options = _common(config, seed)
    options.deviceIterations(config.device_iterations)
    options.Training.gradientAccumulation(config.gradient_accumulation)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.outputMode(poptorch.OutputMode.Sum)
    if config.replication_factor > 1:
        options.broadcastBuffers(False)
    return options


def inference_options(config: IPUConfig, seed: int) -> poptorch.Options:
    """Return the options of inference: all outputs, and enough device iterations for the stages."""
    options = _common(config, seed)
    options.deviceIterations(max(config.inference_device_iterations, stages(config)))
    options.outputMode(poptorch.OutputMode.All)
    return options
