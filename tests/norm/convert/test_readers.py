"""Converted units hand their scale to who reads them, where only linear operators do."""

from __future__ import annotations

import copy
import pickle
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.norm import (
    Pending,
    ProxyNormAct,
    StandIn,
    convert_norms,
    finished,
    fold_proxy_norm,
    plain_operators,
)

CHANNELS = 8


class Gate(nn.Module):
    """Squeeze-and-excite: reads a mean, and multiplies."""

    def __init__(self):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(CHANNELS, 4, 1), nn.Conv2d(4, CHANNELS, 1)

    def forward(self, x):
        pooled = x.mean((2, 3), keepdim=True)
        return torch.sigmoid(self.expand(F.relu(self.reduce(pooled)))) * x


class Residual(nn.Module):
    """A reader that adds what it reads."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x)


class Twice(nn.Module):
    """A convolution that is called twice."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

    def forward(self, x):
        return self.conv(self.conv(x))


class Both(nn.Module):
    """Two convolutions that read one output."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 5, padding=2, groups=2)

    def forward(self, x):
        return self.conv1(x) + self.conv2(x)


class Head(nn.Module):
    """The mean over space, in one way or another, and a linear layer."""

    def __init__(self, way=0):
        super().__init__()
        self.pool, self.linear, self.way = nn.AdaptiveAvgPool2d(1), nn.Linear(CHANNELS, 3), way

    def forward(self, x):
        if self.way == 0:
            x = torch.flatten(self.pool(x), 1)
        elif self.way == 1:
            x = x.mean([2, 3])
        else:
            x = F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), -1)
        return self.linear(F.dropout(x, 0.3, self.training))


def conv(**options):
    return nn.Conv2d(CHANNELS, CHANNELS, **{"kernel_size": 3, "padding": 1, **options})


def hooked():
    layer = conv()
    layer.register_forward_pre_hook(lambda module, inputs: None)
    return layer


def tied():
    layers = conv(), conv()
    layers[1].weight = layers[0].weight
    return nn.Sequential(*layers)


#: What only linear operators read, and what something else does, too.
LINEAR = {
    "conv": conv,
    "strided": lambda: conv(stride=2, groups=4),
    "depthwise, no bias": lambda: conv(groups=CHANNELS, bias=False, kernel_size=5, padding=2),
    "circular": lambda: conv(padding_mode="circular"),
    "reflect": lambda: conv(padding_mode="reflect", dilation=1),
    "same": lambda: conv(padding="same", dilation=2),
    "average": lambda: nn.Sequential(nn.AvgPool2d(2, padding=1), conv()),
    "dropped": lambda: nn.Sequential(nn.Dropout(0.4), nn.Identity(), conv()),
    "dropped channels": lambda: nn.Sequential(nn.Dropout2d(0.4), conv()),
    "some places": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(3), conv()),
    "gate": Gate,
    "both": Both,
}
OTHER = {
    "residual": Residual,
    "twice": Twice,
    "tied": tied,
    "hooked": hooked,
    "parametrized": lambda: parametrizations.spectral_norm(conv()),
    "spectral norm": lambda: nn.utils.spectral_norm(conv()),
    "maximum": lambda: nn.Sequential(nn.MaxPool2d(2), conv()),
    "written into": lambda: nn.Sequential(nn.Dropout(0.4, inplace=True), conv()),
    "alpha dropout": lambda: nn.Sequential(nn.AlphaDropout(0.4), conv()),
}


def network(readers, act=nn.SiLU, way=0):
    """Return a chain of norm, activation and a reader, converted to Group Norm with proxies."""
    layers = [nn.Conv2d(3, CHANNELS, 3)]
    for reader in readers:
        layers += [nn.BatchNorm2d(CHANNELS), act(), reader]
    layers += [nn.BatchNorm2d(CHANNELS), act(), Head(way)]
    model = nn.Sequential(*layers).double()
    convert_norms(model, "gn2+pn")
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.2)
    return model


def units(model):
    return [module for module in model.modules() if isinstance(module, ProxyNormAct)]


def passed(model, x, training, hand_on):
    """Return output and gradients of a pass, as an IPU program computes it, or as a CPU does."""
    torch.manual_seed(0)
    model.train(training).zero_grad()
    x = x.clone().requires_grad_()
    if hand_on is None:
        out = model(x)
    else:
        with plain_operators(hand_on=hand_on):
            out = model(x)
    out.square().sum().backward()
    return [out.detach(), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


def compare(model, x):
    """Compare what hands scales on with what does not, and with the custom backward."""
    for training in (True, False):
        # A power iteration's step changes what the next pass computes.
        models = [copy.deepcopy(model) for _ in range(3)]
        ways = (False, True, None)
        plain, *others = (passed(m, x, training, way) for m, way in zip(models, ways))
        for found in others:
            assert len(found) == len(plain)
            for one, other in zip(found, plain):
                assert (one - other).norm() <= 1e-12 * other.norm().clamp_min(1e-6)


IMAGES = torch.randn(3, 3, 14, 14, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_stay_the_same_function(seed):
    draw = random.Random(seed)
    torch.manual_seed(seed)
    kinds = {**LINEAR, **OTHER}
    names = [draw.choice(list(kinds)) for _ in range(4)]
    act = draw.choice([nn.SiLU, nn.GELU, nn.Hardswish, nn.ReLU, nn.Mish])
    model = network([kinds[name]() for name in names], act, draw.randrange(3))
    assert [u.readers is not None for u in units(model)] == [n in LINEAR for n in names] + [True]
    compare(model, IMAGES)
    folded = fold_proxy_norm(model)
    torch.testing.assert_close(folded(IMAGES), model.eval()(IMAGES), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [*LINEAR, *OTHER])
def test_each_reader(name):
    model = network([(LINEAR.get(name) or OTHER[name])()])
    if name in LINEAR:
        model = pickle.loads(pickle.dumps(model))
    first, last = units(model)
    assert (first.readers is not None) == (name in LINEAR)
    assert last.readers.shift_too
    compare(model, IMAGES)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: torch.cat([x, x], 1),
        lambda x: x.sum(),
        lambda x: (2 - x) * x.size(0) / 3,
        lambda x: x[:, :4].transpose(1, 2),
        lambda x: x * torch.ones(3, 4, 1, 1, dtype=x.dtype),
        lambda x: torch.ones(3, 4, 1, 1, dtype=x.dtype) * x,
        lambda x: torch.ones(3, 4, 1, 1) * x,
        lambda x: x * x.mean((2, 3), keepdim=True),
        lambda x: x.mean(1),
        lambda x: x.mean(),
        lambda x: x.view(3, -1),
        lambda x: x.flatten(2),
        lambda x: x.view(torch.int64),
        lambda x: F.avg_pool2d(x.flatten(2), (4, 1)),
        lambda x: F.adaptive_avg_pool2d(x.flatten(2), (1, 3)),
        lambda x: F.conv2d(x.flatten(2), torch.ones(2, 3, 1, 1, dtype=x.dtype)),
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 1)),
        lambda x: F.pad(x, (1, 1), value=3.0),
        lambda x: F.linear(x, torch.ones(2, 6, dtype=x.dtype)),
        lambda x: F.conv2d(input=x, weight=torch.ones(2, 4, 3, 3, dtype=x.dtype), padding=1),
        lambda x: x.clone().add_(x),
        lambda x: torch.stack(list(x)),
    ],
)
@pytest.mark.parametrize("shift_too", [False, True])
def test_whatever_reads_what_stands_in_gets_the_tensor(use, shift_too):
    value, scale, shift = torch.randn(3, 4, 5, 6).double(), torch.randn(4).double(), torch.ones(4)
    pending = Pending(value, scale, shift.double() if shift_too else None)
    found, expected = use(StandIn(pending)), use(finished(pending))
    found = found.finished() if isinstance(found, StandIn) else found
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_program_hands_on_and_keeps_two_bytes_less():
    model = network([conv(), Gate(), Both()]).float().half().to("meta")
    images = torch.empty(4, 3, 64, 64, dtype=torch.float16, device="meta")
    kept = {}
    for hand_on in (False, True):
        storages = {}

        def pack(tensor, to=storages):
            if tensor.numel() == 4 * CHANNELS * 62 * 62:
                to[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        keeping = torch.autograd.graph.saved_tensors_hooks(pack, lambda it: it)
        with plain_operators(hand_on=hand_on), keeping:
            model(images)
        kept[hand_on] = sum(storages.values()) / (4 * CHANNELS * 62 * 62)
    assert kept[False] - kept[True] >= 2 * 3


def test_a_poptorch_program_gives_the_same():
    model = network([conv(), Gate(), nn.Sequential(nn.AvgPool2d(2), conv())]).float().eval()
    expected = model(IMAGES.float())

    class Program(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            with plain_operators():
                return self.model(x)

    found = poptorch.inferenceModel(Program())(IMAGES.float())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_what_is_changed_after_the_conversion_still_gets_the_tensor():
    model = network([conv(), conv()])
    model[3] = nn.Sequential(nn.MaxPool2d(2), conv().double())
    model[6] = parametrizations.spectral_norm(model[6])
    seen = []
    model[5].register_forward_hook(lambda module, inputs, output: seen.append(output.sum()))
    compare(model, IMAGES)
    with plain_operators():
        assert torch.is_tensor(nn.Sequential(*model[:7])(IMAGES))
    assert seen
