"""Which activation is fused with a norm, and where the shift stays."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ipu_proxynorm.norm import (
    convert_norms,
    plain_operators,
)


def proxied(x, groups, weight, bias, eps=1e-5):
    """Group Norm, ReLU and Proxy Norm with fresh proxies, by the rectified Gaussian's moments."""
    y = F.relu(F.group_norm(x, groups, weight, bias, eps))
    a, b = weight.abs().double(), bias.double()
    t = b / a
    density = torch.exp(-(t**2) / 2) / math.sqrt(2 * math.pi)
    mass = (1 + torch.erf(t / math.sqrt(2))) / 2
    mean = a * (density + t * mass)
    var = a**2 * ((t**2 + 1) * mass + t * density) - mean**2
    mean, std = (m.float().view(1, -1, 1, 1) for m in (mean, (var + 0.03).sqrt()))
    return (y - mean) / std


def swish(x):
    return x * torch.sigmoid(x)


class Custom(nn.Module):
    """An activation that nobody but its author knows."""

    def forward(self, x):
        return swish(x)


def test_shared_activation_is_fused_where_it_follows_a_norm_and_stays_elsewhere(
    shared, lines, scramble
):
    block = scramble(shared())
    report = convert_norms(block, "gn4+pn")
    assert lines(report)["bn1"].activation == "relu"
    assert lines(report)["bn2"].outcome == "plain"
    assert (report.rewritten, report.identities) == (("",), ())
    x = torch.randn(2, 8, 6, 6)
    y = proxied(block.conv(x), 4, block.bn1.weight, block.bn1.bias)
    y = F.group_norm(block.conv(y), 4, block.bn2.weight)  # scale kept, shift dropped
    torch.testing.assert_close(block(x), F.relu(y + x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "way",
    [
        F.relu,
        torch.relu,
        lambda x: x.relu(),
        lambda x: F.relu(x, inplace=True),
        lambda x: F.relu_(input=x),
        lambda x: x.clamp(min=0),
        lambda x: torch.clamp_min(x, 0),
        lambda x: F.hardtanh(x, 0.0, 1e9),
    ],
)
def test_every_way_to_call_relu(way, functional):
    model = functional(way)
    x = torch.randn(2, 3, 8, 8)
    report = convert_norms(model, "gn4+pn")
    assert report.counts["fused"] == 1
    expected = proxied(model.conv(x), 4, model.norm.weight, model.norm.bias).mean((2, 3))
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("way", "name"),
    [
        (F.relu6, "relu6"),
        (F.silu, "silu"),
        (F.hardswish, "hardswish"),
        (torch.tanh, "tanh"),
        (lambda x: F.leaky_relu(x, 0.2), "leaky_relu(0.2)"),
        (lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
        (lambda x: x.clamp(-2, 3), "hardtanh(-2, 3)"),
        (lambda x: x.clamp(max=3), "hardtanh(-inf, 3)"),
        (lambda x: torch.clamp_max(x, 3), "hardtanh(-inf, 3)"),
        (lambda x: x.clamp_min(-2), "hardtanh(-2, inf)"),
        (lambda x: F.hardtanh(x, 0, math.inf), "relu"),
        (lambda x: F.elu(x, alpha=0.5), "elu(alpha=0.5)"),
        (lambda x: F.softplus(x, 2.0), "softplus(beta=2.0)"),
        (F.logsigmoid, "logsigmoid"),
        (lambda x: torch.clip(x, -1, 2), "hardtanh(-1, 2)"),
    ],
)
def test_functional_activations_keep_their_arguments(way, name, functional, lines, scramble):
    model = scramble(functional(way))
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    report = convert_norms(model, "bn")
    assert lines(report)["norm"].activation == name
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        (swish, "its output is read by mul and sigmoid, not by one activation"),
        (lambda x: x * F.relu6(x + 3) / 6, "no activation that is known follows: add and mul"),
        (lambda x: torch.maximum(x, -x), "no activation that is known follows: maximum and neg"),
        (nn.PReLU(8), "no activation that is known follows: PReLU reads it"),
        (Custom(), "no activation that is known follows: Custom reads it"),
        (lambda x: F.relu(F.max_pool2d(x, 2)), "no activation that is known follows: .*max_pool2d"),
        (nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), "no activation .* known follows: MaxPool2d"),
        (lambda x: F.relu(x.transpose(2, 3)), "no activation that is known follows: transpose"),
        (lambda x: F.relu(torch.cat([x, 1 - x], 1)), "no activation that is known follows: cat"),
    ],
)
def test_where_an_activation_may_follow_the_shift_stays(way, reason, functional, lines, scramble):
    model = scramble(functional(way))
    bias, x = model.norm.bias, torch.randn(2, 3, 8, 8)
    expected = way(F.group_norm(model.conv(x), 4, model.norm.weight, bias)).mean((2, 3))
    report = convert_norms(model, "gn4+pn")
    assert re.search(reason, lines(report)["norm"].reason)
    assert (report.new_parameters, report.removed_parameters) == ((), ())
    assert model.norm.bias is bias
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize(
    "way",
    [
        lambda x: F.relu(x + 1),
        lambda x: F.avg_pool2d(F.dropout(x, 0.5), 2),
        nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU()),
        nn.Sequential(nn.Upsample(scale_factor=2), nn.Dropout2d(), nn.Conv2d(8, 8, 1)),
    ],
)
def test_where_none_follows_the_shift_goes(way, functional, lines):
    report = convert_norms(functional(way), "gn4+pn")
    assert lines(report)["norm"].reason.startswith("no activation follows:")
    assert report.removed_parameters == ("norm.bias",)


def test_classes_of_activations_can_be_named(lines):
    class Swish(nn.Module):
        def forward(self, x):
            return swish(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), Swish())
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    report = convert_norms(model, "bn", activations={Swish: "silu"})
    assert (lines(report)["1"].activation, report.identities) == ("silu", ("2",))
    torch.testing.assert_close(model(x), expected)


class Scaled(nn.Module):
    """An activation whose repr does not say its factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x.clamp_min(-1) * self.factor


class Doubling(Scaled):
    def __init__(self):
        super().__init__(2)


class Tripling(Scaled):
    def __init__(self):
        super().__init__(3)


@pytest.mark.parametrize(
    ("one", "other", "fused"),
    [
        (lambda x: x.clamp_min(-1) * 2, lambda x: x.clamp_min(-1) * 3, False),
        (Scaled(2), Scaled(3), False),
        (Scaled(2), Scaled(2), True),
        ("silu", F.silu, True),
    ],
)
def test_named_activations_of_one_name_may_be_two_functions(one, other, fused, lines):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.one, self.other = nn.BatchNorm2d(8), Doubling(), Tripling()

        def forward(self, x):
            return self.other(self.norm(self.one(self.norm(x))))

    model = Twice()
    report = convert_norms(model, "bn", activations={Doubling: one, Tripling: other})
    assert report.counts["fused"] == fused
    assert fused or "here and" in lines(report)["norm"].reason


def test_one_activation_for_all_layers_of_a_sequential():
    act = nn.ReLU()
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), act),
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), act),
        *(nn.Conv2d(8, 8, 1), act),
    )
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    report = convert_norms(model, "bn")
    assert report.counts["fused"] == 2
    assert report.identities == ("3.2",)
    torch.testing.assert_close(model(x), expected)


def test_norm_in_one_module_activation_in_another():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Identity())

        def forward(self, x):
            return F.relu(self.inner(x)) + 1

    model = Outer()
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    report = convert_norms(model, "bn")
    assert (report.counts["fused"], report.rewritten) == (1, ("",))
    torch.testing.assert_close(model(x), expected)


def test_norms_called_twice(lines):
    class Twice(nn.Module):
        def __init__(self, second):
            super().__init__()
            self.norm, self.second = nn.BatchNorm2d(8), second

        def forward(self, x):
            return self.second(self.norm(F.relu(self.norm(x))))

    x = torch.randn(2, 8, 4, 4)
    for second, reason in ((F.relu, ""), (torch.tanh, "relu here and tanh"), (torch.abs, "abs")):
        model = Twice(second)
        expected = model(x)
        report = convert_norms(model, "bn")
        assert reason in lines(report)["norm"].reason
        assert report.counts["fused"] == (reason == "")
        torch.testing.assert_close(model(x), expected)


def test_arguments_by_name(shared, lines, outputs, scramble):
    class Names(shared):
        def forward(self, x, shift):
            y = self.relu(self.bn1(self.conv(x)))
            y = F.dropout(y, 0.5, self.training)
            return self.relu(self.bn2(input=self.conv(y)) + shift)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Names()

        def forward(self, x):
            return self.inner(shift=x, x=x)

    model = scramble(Outer())
    converted = copy.deepcopy(model)
    report = convert_norms(converted, "bn")
    assert lines(report)["inner.bn1"].outcome == "fused"
    assert "called with input=" in lines(report)["inner.bn2"].reason
    assert report.rewritten == ("inner",)
    x = torch.randn(2, 8, 6, 6)
    for training in (True, False):
        assert torch.equal(outputs(converted, x, training), outputs(model, x, training))


def test_output_written_in_place():
    class Adds(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.SiLU())

        def forward(self, x):
            y = self.block(x)
            y += x
            return y

    model = Adds()
    convert_norms(model, "gn4+pn")
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    model(x).square().sum().backward()
    fast, x.grad = x.grad, None
    with plain_operators():
        model(x).square().sum().backward()
    torch.testing.assert_close(fast, x.grad, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(copy.deepcopy(model)(x)).all()
