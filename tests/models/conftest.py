"""One small network of each family: the published blocks, few of them, on few channels."""

import pytest

from ipu_proxynorm.models import EfficientNet, RandomNet, ResNet, ResNetV2
from ipu_proxynorm.models.resnet import BasicBlock, Bottleneck
from ipu_proxynorm.models.resnetv2 import PreActBasicBlock, PreActBottleneck

LARGE = {"width": 16, "large_input": True}
GROUPED = {**LARGE, "groups": 4, "base_width": 16}
SMALL = {
    "resnetv2 basic": lambda **o: ResNetV2(PreActBasicBlock, [1, 2, 1], width=16, **o),
    "resnetv2 bottleneck": lambda **o: ResNetV2(PreActBottleneck, [1, 2], **LARGE, **o),
    "resnextv2": lambda **o: ResNetV2(PreActBottleneck, [1, 2], **GROUPED, **o),
    "resnet basic": lambda **o: ResNet(BasicBlock, [1, 2, 1], width=16, **o),
    "resnet bottleneck": lambda **o: ResNet(Bottleneck, [1, 2], **LARGE, **o),
    "resnext": lambda **o: ResNet(Bottleneck, [1, 2], **GROUPED, **o),
    "efficientnet": lambda **o: EfficientNet(0.25, 0.4, drop_path=0, **o),
    "efficientnet g16": lambda **o: EfficientNet(
        0.25, 0.4, drop_path=0, group_dim=16, expansion=4, **o
    ),
    "random": lambda **o: RandomNet(3, width=16, **o),
}


def pytest_generate_tests(metafunc):
    """Run a test that asks for a family, and does not say for which, for every one."""
    marked = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    if "family" in metafunc.fixturenames and not any("family" in names for names in marked):
        metafunc.parametrize("family", SMALL)


@pytest.fixture
def small():
    """Return a function of a family's name and a network's options."""
    return lambda family, **options: SMALL[family](**options)
