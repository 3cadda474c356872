"""What the units that take the place of norms keep, and what the report says of them."""

import copy
import re

import torch
import torchvision
from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.norm import (
    ProxyNormAct,
    convert_norms,
)


def test_other_norms_than_batch_norm():
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.GroupNorm(2, 8, eps=1e-3), nn.ReLU()),
        *(nn.Conv2d(8, 8, 1), nn.InstanceNorm2d(8), nn.SiLU()),
    )
    weight = model[1].weight
    report = convert_norms(model, "ln+pn")
    assert report.counts["fused"] == 2
    assert model[1].weight is weight
    assert (model[1].eps, model[4].eps) == (1e-3, 1e-5)
    assert {"4.weight", "4.bias"} < set(report.new_parameters)  # Instance Norm had none


def test_converted_networks_can_be_converted_again(outputs, scramble):
    model = scramble(torchvision.models.resnet18(num_classes=3))
    original = copy.deepcopy(model)
    convert_norms(model, "gn4+pn", keep_shift=True)
    proxy = model.bn1.proxy_weight
    report = convert_norms(model, "ln+pn", keep_shift=True)
    assert model.bn1.proxy_weight is proxy
    assert report.new_parameters == report.removed_parameters == ()
    convert_norms(model, "bn")
    model.load_state_dict(original.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(outputs(model, x, True), outputs(original, x, True))


def test_a_converted_network_trains_as_a_poptorch_program(shared):
    class Program(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return poptorch.identity_loss(self.network(x).square(), reduction="mean")

    network = nn.Sequential(shared(), shared())
    convert_norms(network, "gn4+pn")
    host, x = copy.deepcopy(network), torch.randn(6, 8, 4, 4)
    poptorch.BeginBlock(network[1], ipu_id=1)  # changes the class of a rewritten block again
    options = poptorch.Options()
    options.Training.gradientAccumulation(3)
    optimizer = poptorch.optim.SGD(network.parameters(), lr=0.1)
    poptorch.trainingModel(Program(network), options, optimizer)(x)
    for part in x.split(2):
        (host(part).square().mean() / 3).backward()
    for ours, theirs in zip(network.parameters(), host.parameters()):
        expected = theirs - 0.1 * theirs.grad
        torch.testing.assert_close(ours.detach(), expected.detach(), rtol=1e-5, atol=1e-6)


def test_options_reach_the_units_and_shift_can_be_kept(shared):
    model = shared()
    bias = model.bn2.bias
    report = convert_norms(
        model, "gn2+pn", keep_shift=True, eps=1e-2, method="sampled", n=64, proxy_eps=0.1
    )
    unit = model.bn1
    assert isinstance(unit, ProxyNormAct)
    assert (unit.eps, unit.proxy_eps, unit.method, unit.n) == (1e-2, 0.1, "sampled", 64)
    assert model.bn2.bias is bias
    assert report.removed_parameters == ()


def test_keep_mode_dtype_and_frozen_parameters(lines):
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.ReLU())
    ).double()
    model[1].eval()
    model[1].weight.requires_grad_(False)
    report = convert_norms(model, "gn4+pn", keep=["3"])
    assert lines(report)["3"].outcome == "kept"
    assert isinstance(model[3], nn.BatchNorm2d)
    assert not model[1].training
    assert not model[1].weight.requires_grad
    assert model[1].proxy_weight.dtype == torch.float64


def test_report_says_what_an_optimizer_must_know(shared):
    report = convert_norms(shared(), "gn4+pn")
    text = str(report)
    assert "gn4+pn: 2 norms: 1 fused with the activation that follows, 1 without" in text
    assert "5 are the same objects as before, 2 new, 1 removed" in text
    assert "build the optimizer now" in text
    assert "buffers removed: 6 (bn1.running_mean, bn1.running_var, ...)" in text
    assert "forwards rewritten: 1 (the network itself)" in text
    assert re.search(r"bn1 +BatchNorm2d\(8\) +-> ProxyNormAct gn4\+pn +relu", report.table())
    assert re.search(r"bn2 .*-> GroupNormAct gn4\+pn +no activation follows: add", report.table())
