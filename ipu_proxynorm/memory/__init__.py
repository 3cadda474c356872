"""SRAM that a program takes on each IPU, known before it is compiled."""

from ipu_proxynorm.chip import CHIPS, MIB, Chip, find_chip
from ipu_proxynorm.memory.advice import Advice, advise
from ipu_proxynorm.memory.boundaries import Boundary, boundaries
from ipu_proxynorm.memory.budget import TERMS, IpuBudget, ipu_budgets, stash_depth
from ipu_proxynorm.memory.calibration import Parameters, ensemble
from ipu_proxynorm.memory.capture import capture
from ipu_proxynorm.memory.graph import Capture, OperatorRecord, TensorRecord
from ipu_proxynorm.memory.layout import (
    EXCHANGES,
    Layout,
    OptimizerMemory,
    optimizer_memory,
    read_optimizer,
)
from ipu_proxynorm.memory.liveness import Moment, stage_moments
from ipu_proxynorm.memory.options import read_options
from ipu_proxynorm.memory.predict import (
    AT_TWICE_THE_LARGEST,
    FALSE_FITS,
    FITS,
    HOPELESS,
    OUT_OF_MEMORY,
    SAFE,
    UNCERTAIN,
    Prediction,
    Verdict,
    predict,
    predict_capture,
)

__all__ = [
    "AT_TWICE_THE_LARGEST",
    "CHIPS",
    "EXCHANGES",
    "FALSE_FITS",
    "FITS",
    "HOPELESS",
    "MIB",
    "OUT_OF_MEMORY",
    "SAFE",
    "TERMS",
    "UNCERTAIN",
    "Advice",
    "Boundary",
    "Capture",
    "Chip",
    "IpuBudget",
    "Layout",
    "Moment",
    "OperatorRecord",
    "OptimizerMemory",
    "Parameters",
    "Prediction",
    "TensorRecord",
    "Verdict",
    "advise",
    "boundaries",
    "capture",
    "ensemble",
    "find_chip",
    "ipu_budgets",
    "optimizer_memory",
    "predict",
    "predict_capture",
    "read_optimizer",
    "read_options",
    "stage_moments",
    "stash_depth",
]
