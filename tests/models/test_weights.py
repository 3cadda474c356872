"""Other people's weights on our networks: the same outputs, on photographs, or a refusal."""

from functools import partial

import numpy as np
import pytest
import sklearn.datasets
import timm
import torch
import torchvision

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models import (
    OtherClasses,
    create_model,
    load_timm,
    load_torchvision,
    load_weights,
)
from ipu_proxynorm.models.weights import classifier_of


@pytest.fixture(scope="module")
def photographs():
    """scikit-learn's two photographs, (2, 3, 96, 128), as ImageNet's networks take them."""
    images = np.stack([sklearn.datasets.load_sample_image(n) for n in ("china.jpg", "flower.jpg")])
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    pixels = torch.nn.functional.interpolate(pixels, (96, 128), mode="bilinear")
    return torchvision.transforms.functional.normalize(
        pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )


def randomised(network):
    """Give norms weights and statistics as after training: away from where they start."""
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.2)
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def unfilled(name, norm, **options):
    """Return a network whose weights hold nothing yet: drawing them takes most of a test."""
    with torch.device("meta"):
        network = create_model(name, norm, 1000, **options)
    return network.to_empty(device="cpu")


def assert_equal_outputs(ours, theirs, images):
    with torch.no_grad():
        expected, outputs = theirs(images), ours.eval()(images)
    assert expected.std(dim=0).max() > 0  # the two photographs differ
    scale = float(expected.abs().max())
    torch.testing.assert_close(outputs / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet50", "resnext50_32x4d", "efficientnet_b0"])
def test_torchvision_s_networks(name, photographs):
    theirs = randomised(torchvision.models.get_model(name))
    ours = unfilled(name, "bn", norm_eps=1e-5)
    load_torchvision(ours, theirs.state_dict())
    assert_equal_outputs(ours, theirs, photographs)


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b1", "resnetv2_50"])
def test_timm_s_networks(name, photographs):
    theirs = randomised(timm.create_model(name))
    ours = unfilled(name, "bn", norm_eps=1e-5)
    load_timm(ours, theirs.state_dict())
    assert_equal_outputs(ours, theirs, photographs)


def test_timm_s_tensorflow_networks_agree_where_padding_does(photographs):
    theirs = randomised(timm.create_model("tf_efficientnet_b0"))
    ours = unfilled("efficientnet_b0", "bn")  # ε of 1e-3 is both networks' own
    load_timm(ours, theirs.state_dict())
    # Of odd size at every strided convolution, TensorFlow's padding is symmetric, as ours.
    assert_equal_outputs(ours, theirs, photographs[:, :, :65, :97])
    with torch.no_grad():
        difference = (ours(photographs) - theirs(photographs)).abs().max()
    assert difference > 1e-2


def test_group_norm_weights_have_pytorch_s_groups(photographs):
    theirs = timm.create_model("resnet50_gn")
    for module in theirs.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    ours = unfilled("resnet50", "gn32")
    load_timm(ours, theirs.state_dict())
    assert_equal_outputs(ours, theirs.eval(), photographs)


@pytest.mark.parametrize(
    ("name", "norm", "classes", "parts"),
    [
        ("resnet34", "bn", 1000, ["96 missing (layer1.2.conv1.weight", ", ...)"]),
        ("resnet18", "ln", 1000, ["60 left over (bn1.running_mean"]),
        ("resnet18", "none", 1000, ["100 left over (bn1.weight, bn1.bias"]),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(name, norm, classes, parts):
    with torch.device("meta"):
        weights = torchvision.models.resnet18().state_dict()
        model = create_model(name, norm, classes)
    with pytest.raises(UserError) as caught:
        load_torchvision(model, weights)
    for part in ["torchvision's weights do not fit this ResNet", *parts]:
        assert part in str(caught.value)


def test_refused_weights_change_nothing():
    model = create_model("resnet8", "bn")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: torch.zeros_like(value) for name, value in before.items()}
    del weights["fc.bias"]
    with pytest.raises(UserError, match=r"1 missing \(fc.bias\)"):
        load_torchvision(model, weights)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("name", ["resnet8", "resnextv2_50_32x4d", "efficientnet_b7", "random_50"])
def test_the_classifier_is_found(name):
    with torch.device("meta"):
        model = create_model(name, "gn4", 13)
    assert model.get_submodule(classifier_of(model)).out_features == 13


@pytest.mark.parametrize(
    ("name", "theirs", "load", "head"),
    [
        ("resnet18", torchvision.models.resnet18, load_torchvision, "fc"),
        ("resnext50_32x4d", torchvision.models.resnext50_32x4d, load_torchvision, "fc"),
        ("efficientnet_b0", torchvision.models.efficientnet_b0, load_torchvision, "classifier"),
        ("efficientnet_b0", partial(timm.create_model, "efficientnet_b0"), load_timm, "classifier"),
        ("resnetv2_50", partial(timm.create_model, "resnetv2_50"), load_timm, "fc"),
        ("resnetv2_8", partial(create_model, "resnetv2_8", "bn"), load_weights, "fc"),
    ],
)
def test_of_another_number_of_classes_all_but_the_classifier(name, theirs, load, head):
    model = create_model(name, "bn", 5)
    drawn = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: value + 1 for key, value in theirs(num_classes=7).state_dict().items()}
    with pytest.raises(OtherClasses, match="the weights are of 7 classes, this network has 5"):
        load(model, weights)
    load(model, weights, new_head=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, drawn[key]) == key.startswith(f"{head}."), key
    headless = {key: value for key, value in weights.items() if value.shape[:1] != (7,)}
    assert len(headless) == len(weights) - 2
    load(model, headless, new_head=True)
    with pytest.raises(UserError, match=f"2 missing .{head}.weight, {head}.bias"):
        load(model, headless)
