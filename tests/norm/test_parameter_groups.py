from __future__ import annotations

import torch
from torch import nn

from ipu_proxynorm.norm import create_norm_act, describe_parameter_groups, parameter_groups


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        create_norm_act("gn4+pn", 8),
        nn.Flatten(),
        nn.Linear(8 * 6 * 6, 5),
    )


def test_splits_decayed_not_decayed_and_proxy() -> None:
    model = network()
    groups = {group["name"]: group for group in parameter_groups(model, 1e-4, 2e-4)}
    names = {id(p): n for n, p in model.named_parameters()}
    found = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert found == {
        "decayed": {"0.weight", "3.weight"},
        "not decayed": {"0.bias", "1.weight", "1.bias", "3.bias"},
        "proxy": {"1.proxy_weight", "1.proxy_bias"},
    }
    decays = {name: group["weight_decay"] for name, group in groups.items()}
    assert decays == {"decayed": 1e-4, "not decayed": 0.0, "proxy": 2e-4}
    assert parameter_groups(model, 3e-4)[-1]["weight_decay"] == 3e-4


def test_every_trainable_parameter_is_in_one_group_once() -> None:
    model = network()
    model.add_module("tied", nn.Linear(288, 5))
    model.tied.weight = model[3].weight
    model[0].weight.requires_grad_(False)
    grouped = [id(p) for group in parameter_groups(model, 1e-4) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_proxies_receive_gradients_and_decay_and_the_affine_does_not_decay() -> None:
    model = network()
    for name, parameter in model.named_parameters():
        if "1." in name:
            nn.init.constant_(parameter, 0.5)
    optimizer = torch.optim.SGD(parameter_groups(model, weight_decay=0.1), lr=1.0)
    model(torch.randn(2, 3, 8, 8)).square().sum().backward()
    norm = model[1]
    assert norm.proxy_weight.grad.abs().min() > 0
    assert norm.proxy_bias.grad.abs().min() > 0
    for parameter in model.parameters():
        parameter.grad.zero_()
    optimizer.step()
    for parameter, factor in [
        (norm.weight, 1.0),
        (norm.bias, 1.0),
        (norm.proxy_weight, 0.9),
        (norm.proxy_bias, 0.9),
    ]:
        torch.testing.assert_close(parameter, torch.full_like(parameter, 0.5 * factor))


def test_describes_each_group_with_its_counts() -> None:
    lines = describe_parameter_groups(parameter_groups(network(), 1e-4)).splitlines()
    assert [line.split()[0] for line in lines] == ["decayed", "not", "proxy"]
    assert "2 tensors" in lines[2]
    assert "16 values" in lines[2]


def test_a_network_without_proxies_has_two_groups() -> None:
    groups = parameter_groups(nn.Linear(3, 2), 0.1)
    assert [group["name"] for group in groups] == ["decayed", "not decayed"]
