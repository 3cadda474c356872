"""Typed run configuration: YAML files and dotted overrides become documented dataclasses."""

from ipu_proxynorm.config.load import dump, load, loads
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
]
