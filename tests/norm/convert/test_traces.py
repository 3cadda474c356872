"""What a forward draws, decides and keeps by itself: nothing of the conversion stays in it."""

import collections
import contextlib
import copy
import dataclasses
import functools
import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm import convert_norms

GLOBAL = {}
CALLS = 0


class Net(nn.Module):
    """Convolution, norm and a functional activation, so that a fusion rewrites the forward."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.setup()

    def setup(self):
        """Make what the forward keeps."""

    def body(self, x):
        return self.act(self.act(self.norm(self.conv(x))) - 0.1)

    def forward(self, x):
        return self.body(x)


class SkipsByTorch(Net):
    def forward(self, x):
        if self.training and torch.rand(1).item() < 0.5:
            return self.conv(x)
        return self.body(x)


class SkipsByRandom(Net):
    def forward(self, x):
        return self.conv(x) if random.random() < 0.5 else self.body(x)


class SkipsByNumpy(Net):
    def forward(self, x):
        return self.conv(x) if np.random.rand() < 0.5 else self.body(x)


class SkipsByItsOwn(Net):
    def setup(self):
        self.generators = [random.Random(0), np.random.default_rng(0), np.random.RandomState(0)]
        self.torchs = torch.Generator().manual_seed(0)

    def forward(self, x):
        drawn = [g.random() for g in self.generators[:2]] + [self.generators[2].rand()]
        drawn += [torch.rand(1, generator=self.torchs).item()]
        return self.conv(x) if sum(drawn) < 2 else self.body(x)


class AddsNoise(Net):
    def forward(self, x):
        return self.body(x) + torch.rand(1)


class AddsNoiseLikeItsInput(Net):
    def forward(self, x):
        return self.body(x + torch.rand_like(x))


class DropsInFunction(Net):
    def forward(self, x):
        return F.dropout(self.body(x), 0.5, self.training)


class KeepsAMask(Net):
    def setup(self):
        self.mask = None

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones_like(x) * 2
        return self.body(x * self.mask)


class KeepsFeatures(Net):
    def setup(self):
        self.last = None

    def forward(self, x):
        self.last = self.conv(x)
        return self.act(self.norm(self.last)) * 2


class Counts(Net):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return self.body(x)


class ChangesAfterThree(Net):
    def setup(self):
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.body(x) if self.calls < 3 else self.conv(x)


class CountsForItsClass(Net):
    total = 0

    def forward(self, x):
        CountsForItsClass.total += 1
        return self.body(x) * CountsForItsClass.total


class CountsInAGlobal(Net):
    def forward(self, x):
        global CALLS
        CALLS += 1
        return self.body(x) if CALLS % 2 else self.conv(x)


class CountsByIterator(Net):
    def setup(self):
        self.number = itertools.count(3)

    def forward(self, x):
        return self.body(x) * next(self.number)


class Appends(Net):
    def setup(self):
        self.seen, self.queue = [], collections.deque(maxlen=2)
        self.names = {"outer": {"inner": [1, 2]}, "set": {1}}

    def forward(self, x):
        y = self.body(x)
        self.seen.append(y)
        self.queue.append(y)
        self.names["outer"]["inner"].append(y)
        self.names["set"].add(2)
        return y


class CachesInAGlobal(Net):
    def forward(self, x):
        if "scale" not in GLOBAL:
            GLOBAL["scale"] = x.mean()
        return self.body(x) * GLOBAL["scale"]


@functools.lru_cache(maxsize=None)
def table(channels):
    return torch.arange(float(channels)).view(-1, 1, 1)


class CachesAFactory(Net):
    def forward(self, x):
        return self.body(x) * table(8)


@dataclasses.dataclass
class Settings:
    scale: float = 1.0
    history: list = dataclasses.field(default_factory=list)


class Slotted:
    __slots__ = ("count",)


class KeepsInObjects(Net):
    def setup(self):
        self.settings, self.slotted = Settings(), Slotted()
        self.slotted.count = 0

    def forward(self, x):
        self.settings.scale *= 2
        self.settings.history.append(x)
        self.slotted.count += 1
        return self.body(x) * self.settings.scale


class CountsInABuffer(Net):
    def setup(self):
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.step += 1
        return self.body(x) if self.step < 3 else self.conv(x)


class AveragesInABuffer(Net):
    def setup(self):
        self.register_buffer("mean", torch.zeros(8, 1, 1))

    def forward(self, x):
        y = self.body(x)
        self.mean.mul_(0.9).add_(y.detach().mean((0, 2, 3)).view(-1, 1, 1), alpha=0.1)
        return y - self.mean


class ReplacesABuffer(Net):
    def setup(self):
        self.register_buffer("mask", None)

    def forward(self, x):
        if self.mask is None:
            self.mask = torch.ones(1) * 3
        return self.body(x) * self.mask


class HoldsATensor(Net):
    def setup(self):
        self.scale = torch.ones(1)

    def forward(self, x):
        self.scale.mul_(2)
        return self.body(x) * self.scale


class AddsAModule(Net):
    def forward(self, x):
        if not hasattr(self, "head"):
            self.head = nn.Conv2d(8, 8, 1, bias=False)
            nn.init.constant_(self.head.weight, 0.1)
        return self.head(self.body(x))


class SwitchesAModule(Net):
    def setup(self):
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        self.drop.p = 0.25 if self.drop.p == 0.5 else 0.5
        return F.dropout(self.body(x), self.drop.p, self.drop.training)


class AsksForGradients(Net):
    def forward(self, x):
        return self.body(x) if torch.is_grad_enabled() else self.conv(x)


class TrainsInItsOwnWay(Net):
    def setup(self):
        self.switches = 0

    def train(self, mode=True):
        self.switches = getattr(self, "switches", 0) + 1
        return super().train(mode)


class UsesClosure(Net):
    def setup(self):
        count = 0

        def step():
            nonlocal count
            count += 1
            return count

        self.next = step

    def forward(self, x):
        return self.body(x) * self.next()


class FailsAfterChanges(Appends):
    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(1)
        self.calls = torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        super().forward(x)
        raise ValueError("no more")


KINDS = [
    kind
    for kind in list(globals().values())
    if isinstance(kind, type) and issubclass(kind, Net) and kind is not FailsAfterChanges
]


class Outer(nn.Module):
    """Each network as a part of another."""

    def __init__(self, inner):
        super().__init__()
        self.stem, self.inner = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), inner

    def forward(self, x):
        return F.relu(self.inner(F.relu(self.stem(x))))


def told(value, depth=0):
    """Return all that a value holds, as text, without torch's modules and what is replaced."""
    if isinstance(value, torch.Tensor):
        return (tuple(value.shape), value.detach().flatten().tolist(), id(value))
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return repr(value.getstate())
    if isinstance(value, dict):
        return [(k, told(v, depth + 1)) for k, v in value.items()]
    if isinstance(value, (list, tuple, set, collections.deque)):
        return [told(v, depth + 1) for v in value]
    if hasattr(value, "__closure__") and value.__closure__:
        return [told(cell.cell_contents, depth + 1) for cell in value.__closure__]
    if isinstance(value, Settings):
        return told(vars(value), depth + 1)
    return value.count if isinstance(value, Slotted) else repr(value)


def everything(model):
    """Return what a network and the world around it hold, norms and activations aside."""
    modules = [(n, m) for n, m in model.named_modules() if n.split(".")[-1] not in NORMS]
    found = [(name, type(m).__name__, m.training) for name, m in modules]
    for _, module in modules:
        held = {k: v for k, v in vars(module).items() if not k.startswith("_")}
        found += [told(held), told(module._buffers), list(module._modules)]
        found += [told({k: v for k, v in vars(type(module)).items() if isinstance(v, int)})]
    state = (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state()))
    return [*found, *state, told(GLOBAL), CALLS, torch.is_grad_enabled(), torch.get_default_dtype()]


NORMS = ("norm", "1", "act")


def seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def clean():
    reset()
    yield
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_is_as_it_was_and_computes_what_it_did(kind, nested):
    made = []
    for _ in range(2):
        seeded()
        made.append(Outer(kind()) if nested else kind())
    kept, model = made
    before = everything(model)
    report = None
    with contextlib.suppress(UserError):
        report = convert_norms(model, "bn")
    assert everything(model) == before
    assert (report is None) == any(type(m) is nn.BatchNorm2d for m in model.modules())
    x, results = torch.randn(2, 3, 6, 6), []
    for network in (kept, model):
        reset()
        seeded()
        rounds = [network.train(mode)(x).tolist() for mode in (True, True, False, True, True)]
        with torch.no_grad():
            rounds.append(network(x).tolist())
        results.append(rounds)
    assert results[0] == results[1]


def reset():
    """Begin the world's counters anew."""
    global CALLS
    CALLS, CountsForItsClass.total = 0, 0
    GLOBAL.clear()
    table.cache_clear()


@pytest.mark.parametrize("example", [None, torch.zeros(2, 3, 6, 6)])
def test_after_an_error_all_is_as_it_was(example):
    model = FailsAfterChanges()
    before = everything(model)
    with pytest.raises(UserError, match="no more"):
        convert_norms(model, "gn4+pn", example=example)
    assert everything(model) == before
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_what_hooks_note_is_as_it_was_and_hooks_close_nothing():
    model, seen = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU()), []
    outer = nn.Sequential(model)
    model.register_forward_hook(lambda module, args, output: seen.append(output))
    assert convert_norms(outer, "gn4+pn").counts["fused"] == 1
    assert seen == []


def test_blocks_within_a_forward_that_draws_are_converted_by_themselves(shared):
    class Drops(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList([shared(), shared()])
            self.norm = nn.BatchNorm2d(8)

        def forward(self, x):
            for block in self.blocks:
                x = x if self.training and random.random() < 0.5 else block(x)
            return F.relu(self.norm(x))

    model = Drops()
    report = convert_norms(model, "gn4+pn")
    found = {line.name: (line.outcome, line.reason) for line in report.norms}
    assert found["blocks.0.bn1"][0] == found["blocks.1.bn1"][0] == "fused"
    assert found["norm"][0] == "plain"
    assert "the forward of Drops, which draws random numbers of random" in found["norm"][1]
    assert model.norm.bias is not None  # an activation may follow
    outputs = {model(torch.ones(2, 8, 4, 4)).sum().item() for _ in range(20)}
    assert len(outputs) == 4


def test_an_attribute_that_the_code_was_made_for_is_not_changed_unseen():
    class Scaled(Net):
        def setup(self):
            self.scale = 2.0

        def forward(self, x):
            return self.body(x) * self.scale

    model, x = Scaled(), torch.randn(2, 3, 6, 6)
    assert convert_norms(model, "bn").rewritten == ("",)
    model(x)
    model.scale = 3.0
    with pytest.raises(UserError, match=r"Scaled.scale=3.0: .* when it was 2.0; set it before"):
        copy.deepcopy(model)(x)


def test_an_activation_shared_with_a_module_not_looked_into_stays_there():
    act = nn.ReLU()

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = act

        def forward(self, x):
            return self.act(x - 0.5)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), act, Gate())
    x = torch.randn(2, 3, 4, 4)
    expected = model(x)
    assert convert_norms(model, "bn").counts["fused"] == 1
    assert torch.equal(model(x), expected)


def test_compiled_networks_are_said_to_be_such():
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
    for model in (torch.jit.script(plain), torch.jit.trace(plain, torch.zeros(1, 3, 2, 2))):
        with pytest.raises(UserError, match=r"is TorchScript .* script or trace that afterwards"):
            convert_norms(model, "gn4")
    mixed = nn.Sequential(torch.jit.script(plain), nn.BatchNorm2d(8), nn.ReLU())
    report = convert_norms(mixed, "gn4+pn")
    assert {line.name: line.outcome for line in report.norms} == {"0.1": "refused", "1": "fused"}
    assert "is TorchScript" in report.norms[0].reason
    assert mixed(torch.randn(1, 3, 2, 2)).shape == (1, 8, 2, 2)
    compiled = type("OptimizedModule", (nn.Sequential,), {})(plain)  # torch.compile's takes seconds
    with pytest.raises(UserError, match=r"compiled by torch.compile: .*_orig_mod"):
        convert_norms(compiled, "gn4")
