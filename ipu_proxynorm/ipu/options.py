"""The layout of a run as ``poptorch.Options``."""

from __future__ import annotations

import torch

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import IPUConfig
from ipu_proxynorm.ipu.distribution import ALONE, Instance, instance_options
from ipu_proxynorm.placement import OFF_CHIP, ON_CHIP, SHARDED


def _common(config: IPUConfig, seed: int, instance: Instance) -> poptorch.Options:
    """Return what training and inference share: replicas, order of the stages, precision."""
    options = instance_options(config, instance)
    options.randomSeed(seed)
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
    return options


def stages(config: IPUConfig) -> int:
    """Return the number of pipeline stages, each on its own IPU of a replica."""
    return len(config.splits) + 1


def training_options(
    config: IPUConfig, seed: int, auto_loss_scaling: bool = False, instance: Instance = ALONE
) -> poptorch.Options:
    """Return the options of training: outputs summed over the micro-batches of a host call.

    Batch Norm's running statistics are written in training, so each replica keeps its own.
    ``auto_loss_scaling`` is PopART's, experimental, on top of the optimiser's own loss scaling.
    """
    options = _common(config, seed, instance)
    options.deviceIterations(config.device_iterations)
    options.Training.gradientAccumulation(config.gradient_accumulation)
    options.Training.accumulationAndReplicationReductionType(poptorch.ReductionType.Mean)
    options.outputMode(poptorch.OutputMode.Sum)
    if auto_loss_scaling:
        options.Training.setAutomaticLossScaling(True)
    if config.replication_factor > 1:
        options.broadcastBuffers(False)
    if config.optimizer_state != ON_CHIP:
        location = poptorch.TensorLocationSettings()
        location.useOnChipStorage(config.optimizer_state != OFF_CHIP)
        location.useReplicatedTensorSharding(config.optimizer_state == SHARDED)
        options.TensorLocations.setOptimizerLocation(location)
    return options


def inference_options(config: IPUConfig, seed: int, instance: Instance = ALONE) -> poptorch.Options:
    """Return the options of inference: all outputs, and enough device iterations for the stages."""
    options = _common(config, seed, instance)
    options.deviceIterations(max(config.inference_device_iterations, stages(config)))
    options.outputMode(poptorch.OutputMode.All)
    return options
