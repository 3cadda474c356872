"""Images of a folder have no size of their own: the network's, in training as in predictions."""

import dataclasses

import pytest

from ipu_proxynorm.config import RunConfig, load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.run import build, own_image_size


@pytest.mark.parametrize(
    ("dataset", "network", "given", "size"),
    [
        ("image_folder", "efficientnet_b4", None, 380),
        ("image_folder", "resnet50", None, 224),
        ("image_folder", "efficientnet_b4", 252, 252),
        ("cifar10", "efficientnet_b4", None, None),  # 32x32, as they are
    ],
)
def test_size_of_training_images(dataset, network, given, size):
    config = RunConfig()
    model = dataclasses.replace(config.model, name=network)
    data = dataclasses.replace(config.data, name=dataset, image_size=given)
    assert own_image_size(data, model.name) == size


def test_validation_images_that_are_too_small_are_refused_before_training():
    config = load("configs/quickstart.yaml", ["data.eval_image_size=2"])
    with pytest.raises(UserError, match=r"data\.eval_image_size=2: images of 2x2 are too small"):
        build(config)
