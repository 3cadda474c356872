"""Networks by name. Each takes a norm spec, knows the norms and nothing of IPUs."""

from models.factory import MODELS, create_model
from models.resnet import ResNetV2

__all__ = ["MODELS", "ResNetV2", "create_model"]
