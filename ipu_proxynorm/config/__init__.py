"""Typed run configuration: YAML files and dotted overrides become documented dataclasses."""

from ipu_proxynorm.config.load import dump, load, loads, recipes
from ipu_proxynorm.config.optimizers import OPTIMIZERS, optimizer_values
from ipu_proxynorm.config.schema import (
    DataConfig,
    IPUConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    documentation,
)

__all__ = [
    "OPTIMIZERS",
    "DataConfig",
    "IPUConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "TrainingConfig",
    "documentation",
    "dump",
    "load",
    "loads",
    "optimizer_values",
    "recipes",
]
