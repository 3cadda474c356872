"""Networks by name. Each takes a norm spec, knows the norms and nothing of IPUs."""

from models.cost import Cost, cost, multiply_adds
from models.efficientnet import EfficientNet
from models.factory import (
    MODELS,
    Architecture,
    architecture,
    check_resolution,
    create_model,
    default_resolution,
)
from models.layers import Network
from models.random_net import RandomNet
from models.resnet import ResNet
from models.resnetv2 import ResNetV2
from models.theirs import PROVIDERS, creating_call
from models.weights import load_timm, load_torchvision, load_weights, to_timm, to_torchvision

__all__ = [
    "MODELS",
    "PROVIDERS",
    "Architecture",
    "Cost",
    "EfficientNet",
    "Network",
    "RandomNet",
    "ResNet",
    "ResNetV2",
    "architecture",
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
]
