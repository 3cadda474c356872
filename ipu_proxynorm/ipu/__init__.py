"""A torch network becomes a PopTorch program: options, pipeline stages, device-side steps."""

from ipu_proxynorm.ipu.options import inference_options, training_options
from ipu_proxynorm.ipu.pipeline import Stage, pipeline_stages, place, split_points
from ipu_proxynorm.ipu.program import Classification

__all__ = [
    "Classification",
    "Stage",
    "inference_options",
    "pipeline_stages",
    "place",
    "split_points",
    "training_options",
]
