"""A torch network becomes a PopTorch program: options, pipeline stages, device-side steps."""

from ipu_proxynorm.ipu.distribution import ALONE, Instance, launched
from ipu_proxynorm.ipu.mixing import Mixing
from ipu_proxynorm.ipu.network import create_network
from ipu_proxynorm.ipu.options import inference_options, training_options
from ipu_proxynorm.ipu.pipeline import (
    PipelineStage,
    pipeline_stages,
    place,
    resolve_splits,
    split_points,
)
from ipu_proxynorm.ipu.program import Classification
from ipu_proxynorm.precision import PRECISIONS, Precision, precision_of, set_weights_type

__all__ = [
    "ALONE",
    "PRECISIONS",
    "Classification",
    "Instance",
    "Mixing",
    "PipelineStage",
    "Precision",
    "create_network",
    "inference_options",
    "launched",
    "pipeline_stages",
    "place",
    "precision_of",
    "resolve_splits",
    "set_weights_type",
    "split_points",
    "training_options",
]
