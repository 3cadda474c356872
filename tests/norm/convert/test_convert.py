"""Converting networks that are not ours: what is found, fused, refused, and left as it was."""

import copy
import functools
import io
import math
import pickle
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm import (
    BatchNormAct,
    GroupNormAct,
    ProxyNormAct,
    convert_norms,
    plain_operators,
)

PAGE = Path(__file__).parents[3] / "docs" / "convert.md"
NETWORKS = [
    ("torchvision", "resnet18"),
    ("torchvision", "mobilenet_v3_small"),
    ("timm", "resnet18"),
    ("timm", "regnety_002"),
    ("timm", "efficientnet_b0"),
]


@functools.lru_cache(maxsize=None)
def created(library, name):
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name, pretrained=False, num_classes=10)
    return torchvision.models.get_model(name, weights=None, num_classes=10)


def create(library, name):
    return copy.deepcopy(created(library, name))


def scramble(model):
    """Give every parameter and running statistic a value that shows where it is used."""
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data.add_(torch.rand_like(tensor) * 0.05)
    return model


def outputs(model, x, training):
    torch.manual_seed(1)  # for what drops
    return model.train(training)(x)


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


class Shared(nn.Module):
    """A block whose ReLU is one module, called also after the addition, as torchvision's."""

    def __init__(self, act=None):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.relu = act or nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv(x)))
        return self.relu(self.bn2(self.conv(y)) + x)


class Functional(nn.Module):
    """One way or another to call an activation without a module."""

    def __init__(self, way):
        super().__init__()
        self.conv, self.norm, self.way = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), way

    def forward(self, x):
        return self.way(self.norm(self.conv(x))).mean((2, 3))


class Branching(Functional):
    """Its forward depends on a value."""

    def forward(self, x):
        y = self.way(self.norm(self.conv(x)))
        return y.mean((2, 3)) if float(y.detach().mean()) > -1e9 else y


def swish(x):
    return x * torch.sigmoid(x)


def lines(report):
    return {line.name: line for line in report.norms}


@pytest.mark.parametrize(("library", "name"), NETWORKS)
def test_batch_norm_to_batch_norm_changes_nothing(library, name):
    model = scramble(create(library, name))
    converted = copy.deepcopy(model)
    report = convert_norms(converted, "bn")
    assert report.counts["refused"] == 0
    assert report.new_parameters == report.removed_parameters == report.removed_buffers == ()
    assert list(converted.state_dict()) == list(model.state_dict())
    assert any(isinstance(m, BatchNormAct) for m in converted.modules())
    x = torch.randn(2, 3, 32, 32)
    for training in (True, False):
        assert torch.equal(outputs(converted, x, training), outputs(model, x, training))
    for key, value in model.state_dict().items():  # the running statistics of the training pass
        assert torch.equal(converted.state_dict()[key], value), key


@pytest.mark.parametrize(("library", "name"), NETWORKS)
def test_converted_networks_train(library, name):
    model = create(library, name)
    before = dict(model.named_parameters())
    report = convert_norms(model, "gn4+pn")
    after = dict(model.named_parameters())
    assert set(after) - set(before) == set(report.new_parameters)
    assert set(before) - set(after) == set(report.removed_parameters)
    assert all(after[name] is before[name] for name in report.kept_parameters)
    assert all(name.endswith(("proxy_weight", "proxy_bias")) for name in report.new_parameters)
    assert all(name.endswith("bias") for name in report.removed_parameters)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loss = F.cross_entropy(model.train()(torch.randn(2, 3, 32, 32)), torch.tensor([1, 2]))
    loss.backward()
    optimizer.step()
    assert torch.isfinite(loss)
    assert [name for name, p in after.items() if p.grad is None] == []
    assert torch.isfinite(model.eval()(torch.randn(1, 3, 32, 32))).all()


@pytest.mark.parametrize(
    ("library", "name"),
    [NETWORKS[0], *NETWORKS[2:], ("timm", "repvgg_a0"), ("timm", "convnext_atto")],
)
def test_table_of_the_docs(library, name):
    row = re.search(rf"^\| {library} {name} \|(.*)\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert row is not None, "not in the table"
    cells = [cell.strip() for cell in row.group(1).split("|")]
    report = convert_norms(create(library, name), "gn4+pn")
    counts = report.counts
    reasons = "; ".join(f"{count} {reason}" for reason, count in report.reasons.items())
    stated = [len(report.norms), counts["fused"], counts["plain"], reasons or 0]
    assert cells == [str(value) for value in [*stated, len(report.rewritten)]]


def test_shared_activation_is_fused_where_it_follows_a_norm_and_stays_elsewhere():
    block = scramble(Shared())
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
def test_every_way_to_call_relu(way):
    model = Functional(way)
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
        (lambda x: F.elu(x, alpha=0.5), "elu(alpha=0.5)"),
        (lambda x: F.softplus(x, 2.0), "softplus(beta=2.0)"),
        (F.logsigmoid, "logsigmoid"),
        (lambda x: torch.clip(x, -1, 2), "hardtanh(-1, 2)"),
    ],
)
def test_functional_activations_keep_their_arguments(way, name):
    model = scramble(Functional(way))
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    report = convert_norms(model, "bn")
    assert lines(report)["norm"].activation == name
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


class Custom(nn.Module):
    """An activation that nobody but its author knows."""

    def forward(self, x):
        return swish(x)


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
def test_where_an_activation_may_follow_the_shift_stays(way, reason):
    model = scramble(Functional(way))
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
def test_where_none_follows_the_shift_goes(way):
    report = convert_norms(Functional(way), "gn4+pn")
    assert lines(report)["norm"].reason.startswith("no activation follows:")
    assert report.removed_parameters == ("norm.bias",)


def test_classes_of_activations_can_be_named():
    class Swish(nn.Module):
        def forward(self, x):
            return swish(x)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), Swish())
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    report = convert_norms(model, "bn", activations={Swish: "silu"})
    assert (lines(report)["1"].activation, report.identities) == ("silu", ("2",))
    torch.testing.assert_close(model(x), expected)


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


def test_forward_that_differs_in_training():
    class Two(Functional):
        def forward(self, x):
            y = F.relu(self.norm(self.conv(x)))
            return F.dropout(F.relu(y - 0.1), 0.5, self.training) if self.training else y * 2

    model = scramble(Two(None))
    converted = copy.deepcopy(model)
    assert convert_norms(converted, "bn").rewritten == ("",)
    x = torch.randn(2, 3, 8, 8)
    for training in (True, False):
        assert torch.equal(outputs(converted, x, training), outputs(model, x, training))


def test_rewritten_blocks_keep_class_and_can_be_copied_and_pickled():
    model = scramble(torchvision.models.resnet18(num_classes=3))
    kinds = {name: type(module) for name, module in model.named_modules()}
    convert_norms(model, "gn4+pn")
    block = model.layer1[0]
    assert isinstance(block, torchvision.models.resnet.BasicBlock)
    assert block.stride == 1
    for name, module in model.named_modules():
        if not isinstance(module, GroupNormAct) and name != "relu":  # the stem's, an Identity now
            assert isinstance(module, kinds[name])
            assert type(module).__name__ == kinds[name].__name__
    x = torch.randn(1, 3, 32, 32)
    expected = model.eval()(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = torchvision.models.resnet18(num_classes=3)
    convert_norms(fresh, "gn4+pn")
    fresh.load_state_dict(torch.load(file))
    tracer = torch.fx.Tracer()
    tracer.is_leaf_module = lambda module, _: isinstance(module, (GroupNormAct, nn.Conv2d))
    retraced = torch.fx.GraphModule(model, tracer.trace(model))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), fresh.eval(), retraced):
        assert torch.equal(other(x), expected)


def test_untraceable_networks_are_refused_or_recorded():
    model = scramble(Branching(F.relu))
    with pytest.raises(UserError, match=r"cannot be traced by torch.fx .*example="):
        convert_norms(model, "gn4+pn")
    assert isinstance(model.norm, nn.BatchNorm2d)
    x = torch.randn(2, 3, 8, 8)
    expected, state = model.eval()(x), torch.get_rng_state()
    mean = model.norm.running_mean.clone()
    report = convert_norms(model, "bn", example=x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.norm.running_mean, mean)
    # Its own forward cannot be traced: the activation stays where it is.
    assert "forward of Branching, which cannot be rewritten" in lines(report)["norm"].reason
    assert torch.equal(model(x), expected)
    assert not model.training
    with pytest.raises(UserError, match=r"on the example, in training: RuntimeError"):
        convert_norms(Branching(F.relu), "bn", example=torch.randn(2, 4, 8, 8))


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_recorded_calls_say_what_traced_ones_say(library, monkeypatch):
    name = "resnet18"
    model = create(library, name)
    by_record = copy.deepcopy(model)
    expected = convert_norms(model, "gn4+pn")

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) if float(x.detach().sum()) > -1e9 else x

    report = convert_norms(Wrapped(by_record), "gn4+pn", example=torch.randn(2, 3, 32, 32))
    for line, other in zip(report.norms, expected.norms):
        assert line.name == f"inner.{other.name}"
        assert (line.outcome, line.reason) == (other.outcome, other.reason)
    x = torch.randn(2, 3, 32, 32)
    by_record.load_state_dict(model.state_dict())
    assert torch.equal(outputs(by_record, x, False), outputs(model, x, False))


def test_optional_arguments_are_not_guessed():
    class Optional(Functional):
        def forward(self, x, scale=None):
            y = F.relu(self.norm(self.conv(x)))
            return y if scale is None else y * scale

    model = scramble(Optional(None))
    x = torch.randn(2, 3, 8, 8)
    expected = model(x, 2.0)
    report = convert_norms(model, "bn")
    assert "optional arguments (scale=None)" in lines(report)["norm"].reason
    torch.testing.assert_close(model(x, 2.0), expected)


def test_graph_modules_are_edited():
    model = torch.fx.symbolic_trace(scramble(Shared()))
    x = torch.randn(2, 8, 6, 6)
    expected = model(x)
    assert convert_norms(model, "bn").counts["fused"] == 1
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(each(x), expected)
    assert model.code.count("self.relu") == 1


def test_norms_called_twice():
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


def test_arguments_by_name():
    class Names(Shared):
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


def test_hooks_are_not_lost():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8))
    seen = []
    for index in (2, 3):
        model[index].register_forward_hook(lambda *_: seen.append(1))
    found = lines(convert_norms(model, "gn4+pn"))
    assert (found["1"].outcome, found["3"].outcome) == ("plain", "refused")
    assert "hooks" in found["1"].reason
    assert "hooks" in found["3"].reason
    model(torch.randn(2, 3, 4, 4))
    assert len(seen) == 2


def test_refused_norms_and_why():
    class Odd(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) + 1

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(
                [
                    nn.LayerNorm(4),
                    torchvision.ops.FrozenBatchNorm2d(8),
                    Odd(8),
                    nn.LocalResponseNorm(2),
                    timm.layers.EvoNorm2dS0(8),
                    nn.LazyBatchNorm2d(),
                ]
            )
            self.unused = nn.BatchNorm2d(8)

        def forward(self, x):
            for norm in self.norms:
                x = norm(x)
            return F.group_norm(x, 2)

    report = convert_norms(Other(), "gn4+pn")
    reasons = {line.name: line.reason for line in report.norms if line.outcome == "refused"}
    for name, words in {
        "norms.0": "last dimensions",
        "norms.1": "frozen",
        "norms.2": "overrides forward",
        "norms.3": "another kind: LocalResponseNorm",
        "norms.4": "another kind: EvoNorm2dS0",
        "norms.5": "does not know its channels",
        "unused": "not called",
    }.items():
        assert words in reasons[name], name
    assert report.counts["refused"] == len(report.norms) == len(reasons)


def test_functional_norms_are_reported():
    class Model(Functional):
        def forward(self, x):
            return F.group_norm(super().forward(x), 2)

    report = convert_norms(Model(F.relu), "gn4+pn")
    assert [(n.type, n.outcome) for n in report.norms][1:] == [("group_norm", "refused")]


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


def test_converted_networks_can_be_converted_again():
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


def test_a_converted_network_trains_as_a_poptorch_program():
    class Program(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, x):
            return poptorch.identity_loss(self.network(x).square(), reduction="mean")

    network = nn.Sequential(Shared(), Shared())
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


def test_options_reach_the_units_and_shift_can_be_kept():
    model = Shared()
    bias = model.bn2.bias
    report = convert_norms(
        model, "gn2+pn", keep_shift=True, eps=1e-2, method="sampled", n=64, proxy_eps=0.1
    )
    unit = model.bn1
    assert isinstance(unit, ProxyNormAct)
    assert (unit.eps, unit.proxy_eps, unit.method, unit.n) == (1e-2, 0.1, "sampled", 64)
    assert model.bn2.bias is bias
    assert report.removed_parameters == ()


def test_no_norm_at_all():
    model = scramble(Functional(F.silu)).eval()
    report = convert_norms(model, "none")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), F.silu(model.conv(x)).mean((2, 3)))
    assert set(report.removed_parameters) == {"norm.weight", "norm.bias"}


def test_keep_mode_dtype_and_frozen_parameters():
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


def test_report_says_what_an_optimizer_must_know():
    report = convert_norms(Shared(), "gn4+pn")
    text = str(report)
    assert "gn4+pn: 2 norms: 1 fused with the activation that follows, 1 without" in text
    assert "5 are the same objects as before, 2 new, 1 removed" in text
    assert "build the optimizer now" in text
    assert "buffers removed: 6 (bn1.running_mean, bn1.running_var, ...)" in text
    assert "forwards rewritten: 1 (the network itself)" in text
    assert re.search(r"bn1 +BatchNorm2d\(8\) +-> ProxyNormAct gn4\+pn +relu", report.table())
    assert re.search(r"bn2 .*-> GroupNormAct gn4\+pn +no activation follows: add", report.table())


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("gn4+pm", {}, "did you mean 'gn4.*'"),
        ("gn4+ws", {}, "leaves convolutions as they are.*use 'gn4'"),
        ("gn3+pn", {}, "norm 'bn1': the 3 groups of .* do not divide its 8 .*every norm's is 2"),
        ("bn", {"keep": ["bn7"]}, "keep='bn7': no norm of the model has this name; .*bn1"),
        ("gn4+pn", {"method": "guess"}, "unknown method 'guess'"),
    ],
)
def test_wrong_input_changes_nothing(spec, options, words):
    model = Shared()
    with pytest.raises(ValueError, match=words):
        convert_norms(model, spec, **options)
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert type(model) is Shared


def test_a_norm_alone_cannot_be_replaced_in_place():
    with pytest.raises(UserError, match="the model is itself a norm"):
        convert_norms(nn.BatchNorm2d(4), "ln")
