"""Networks by name. Each takes a norm spec, knows the norms and nothing of IPUs."""

from ipu_proxynorm.models.cost import Cost, cost, multiply_adds
from ipu_proxynorm.models.efficientnet import EfficientNet
from ipu_proxynorm.models.factory import (
    MODELS,
    OPTIONS,
    Architecture,
    architecture,
    check_resolution,
    create_model,
    default_resolution,
)
from ipu_proxynorm.models.layers import Network
from ipu_proxynorm.models.random_net import RandomNet
from ipu_proxynorm.models.resnet import ResNet
from ipu_proxynorm.models.resnetv2 import ResNetV2
from ipu_proxynorm.models.theirs import PROVIDERS, creating_call
from ipu_proxynorm.models.weights import (
    OtherClasses,
    check_classes,
    load_timm,
    load_torchvision,
    load_weights,
    to_timm,
    to_torchvision,
    without_classifier,
)

__all__ = [
    "MODELS",
    "OPTIONS",
    "PROVIDERS",
    "Architecture",
    "Cost",
    "EfficientNet",
    "Network",
    "OtherClasses",
    "RandomNet",
    "ResNet",
    "ResNetV2",
    "architecture",
    "check_classes",
    "check_resolution",
    "cost",
    "create_model",
    "creating_call",
    "default_resolution",
    "load_timm",
    "load_torchvision",
    "load_weights",
    "multiply_adds",
    "to_timm",
    "to_torchvision",
    "without_classifier",
]
