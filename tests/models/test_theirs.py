"""The networks that torchvision and timm are said to have: created as said, the same tensors."""

import functools

import pytest
import timm
import torch
import torchvision

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models import create_model, creating_call, to_timm, to_torchvision
from ipu_proxynorm.models.theirs import NETWORKS

THEIRS = {"functools": functools, "timm": timm, "torch": torch, "torchvision": torchvision}
RENAMED = {"torchvision": to_torchvision, "timm": to_timm}


def epsilons(network):
    return {module.eps for module in network.modules() if hasattr(module, "eps")}


def test_all_networks_are_theirs():
    for name in NETWORKS["torchvision"]:
        assert hasattr(torchvision.models, name)
    assert set(NETWORKS["timm"]) <= set(timm.list_models())


@pytest.mark.parametrize(
    ("provider", "name", "norm", "channels", "options"),
    [
        ("torchvision", "resnext50_32x4d", "bn", 3, {"norm_eps": 0.01}),
        ("torchvision", "efficientnet_b5", "bn", 3, {}),
        ("timm", "resnext101_32x4d", "bn", 1, {}),
        ("timm", "resnetv2_50", "bn", 3, {"norm_eps": 0.01}),
        ("timm", "resnet50", "gn32", 3, {"norm_eps": 0.01}),
        ("timm", "efficientnet_b1", "bn", 1, {"dropout": 0.5}),
    ],
)
def test_the_same_tensors_and_epsilon(provider, name, norm, channels, options):
    call = creating_call(provider, name, norm, 7, channels, options)
    with torch.device("meta"):
        ours, theirs = create_model(name, norm, 7, channels, **options), eval(call, THEIRS)
    expected = {key: value.shape for key, value in theirs.state_dict().items()}
    assert {key: value.shape for key, value in RENAMED[provider](ours).items()} == expected
    assert epsilons(ours) == epsilons(theirs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("keras", "resnet50", "bn", 10), r"provider 'keras' is unknown.*torchvision, timm"),
        (("torchvision", "resnet50", "bn", 10, 1), "take images of 3 channels, not 1"),
        (("torchvision", "efficientnet_b5", "bn", 10, 3, {"norm_eps": 0.1}), "0.001 always"),
        (("timm", "efficientnet_b0", "bn", 10, 3, {"group_dim": 16}), "group_dim=1, not 16"),
        (("timm", "resnet50", "gn16", 10), r"resnet50_gn gn32\), not gn16"),
    ],
)
def test_what_they_do_not_have_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        creating_call(*arguments)


def test_strided_groups_are_refused():
    network = create_model("resnet18", "gn32", 10, width=64)
    network.bn1.channel_grouping = "strided"
    with pytest.raises(UserError, match=r"bn1.channel_grouping is strided.*regroup_channels"):
        to_timm(network)
