"""Typed run configuration: YAML files and dotted overrides become documented dataclasses."""

from ipu_proxynorm.config.load import UNNEEDED_WITHOUT_A_RUN, dump, load, loads
from ipu_proxynorm.config.optimizer_kinds import OPTIMIZERS, OptimizerKind
from ipu_proxynorm.config.optimizers import optimizer_values
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
    "UNNEEDED_WITHOUT_A_RUN",
    "DataConfig",
    "IPUConfig",
    "ModelConfig",
    "OptimizerConfig",
    "OptimizerKind",
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
