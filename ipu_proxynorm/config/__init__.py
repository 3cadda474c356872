"""Typed run configuration: YAML files and dotted overrides become documented dataclasses."""

from ipu_proxynorm.config.load import dump, load, loads
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
from ipu_proxynorm.config.shipped import SHIPPED, recipe_names, recipes

__all__ = [
    "OPTIMIZERS",
    "SHIPPED",
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
    "recipe_names",
    "recipes",
]
