"""Training the last layers only."""

import pytest
import torch
from torch import nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import parameter_groups
from ipu_proxynorm.run.fine_tuning import freeze, set_training_mode


def network():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)),
        nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5)),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


def test_everything_outside_is_frozen_and_in_evaluation_mode():
    model = network()
    frozen = freeze(model, ["1", "3.bias"])
    assert frozen == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "3.weight"]
    grouped = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    named = dict(model.named_parameters())
    assert grouped == {id(p) for name, p in named.items() if name not in frozen}
    set_training_mode(model, ["1", "3.bias"])
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {
        "": True, "0": False, "0.0": False, "0.1": False, "0.2": False,
        "1": True, "1.0": True, "1.1": True, "1.2": True, "2": False, "3": True,
    }  # fmt: skip
    set_training_mode(model, [])
    assert all(module.training for module in model.modules())


def test_a_frozen_batch_norm_uses_and_keeps_its_running_statistics():
    model = network()
    freeze(model, ["3"])
    set_training_mode(model, ["3"])
    before = model[0][1].running_mean.clone()
    x = torch.randn(4, 1, 6, 6)
    features = model[0](x)
    assert torch.equal(model[0][1].running_mean, before)
    torch.testing.assert_close(features, model[0][0](x) / (1 + 1e-5) ** 0.5)


def test_a_layer_of_the_same_beginning_is_another_layer():
    model = create_model("resnetv2_8", norm="ln")
    assert "layer1.0.conv1.weight" in freeze(model, ["layer2", "fc"])
    assert model.layer2[0].conv1.weight.requires_grad
    with pytest.raises(UserError, match=r"training.trainable=.*'layer' is no layer.*layer1"):
        freeze(model, ["layer"])


def test_nothing_named_means_all():
    model = network()
    assert freeze(model, []) == []
    assert all(parameter.requires_grad for parameter in model.parameters())
