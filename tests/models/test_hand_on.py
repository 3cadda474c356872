"""The form that IPU programs have, each scale with who reads it, against the plain one."""

import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import (
    Conv2d,
    Pending,
    ProxyNormAct,
    create_norm_act,
    hand_on_to,
    plain_operators,
    share_moments,
)
from ipu_proxynorm.norm.functional import group_norm, proxy_norm

SPECS = ("ln+pn", "gn4+pn", "gn4+pn+ws")


def scattered(model):
    """Return a network in float64 whose norms are away from their initial values."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double()


def outputs_and_gradients(model, images, hand_on):
    model.zero_grad()
    with plain_operators(hand_on=hand_on):
        logits = model(images)
    F.cross_entropy(logits, torch.arange(len(images)) % 5).backward()
    return [logits, *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("norm", SPECS)
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_outputs_and_gradients_are_those_of_the_plain_form(small, family, norm, act):
    model = scattered(small(family, norm=norm, act_layer=act, num_classes=5))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for training in (True, False):
        model.train(training)
        plain = outputs_and_gradients(model, images, hand_on=False)
        handed = outputs_and_gradients(model, images, hand_on=True)
        torch.testing.assert_close(handed, plain, rtol=1e-12, atol=1e-12)
    share_moments(model)
    shared = outputs_and_gradients(model, images, hand_on=True)
    torch.testing.assert_close(shared, plain, rtol=1e-9, atol=1e-12)
    with torch.no_grad():  # the custom backward's network
        torch.testing.assert_close(model(images), plain[0], rtol=1e-6, atol=1e-9)


def test_most_units_of_an_efficientnet_hand_their_scale_on(small):
    model = small("efficientnet", norm="ln+pn")
    units = {n: m for n, m in model.named_modules() if isinstance(m, ProxyNormAct)}
    found = {}
    for name, unit in units.items():
        unit.register_forward_hook(
            lambda module, inputs, out, name=name: found.update({name: isinstance(out, Pending)})
        )
    with plain_operators():
        model(torch.randn(1, 3, 64, 64))
    assert found.keys() == units.keys()
    assert [name for name, handed in found.items() if not handed] == ["bn1"]  # an addition reads it


def test_units_of_a_bottleneck_leave_their_shift_to_small_1x1_convolutions():
    model = create_model("resnetv2_50", "gn4+pn").to("meta")
    left = []
    for name, unit in model.named_modules():
        if isinstance(unit, ProxyNormAct):
            unit.register_forward_hook(
                lambda module, inputs, out, name=name: (
                    left.append(name) if isinstance(out, Pending) and out.scale is None else None
                )
            )
    with plain_operators():
        model(torch.empty(1, 3, 224, 224, device="meta"))
    blocks = [f"layer{s}.{b}" for s, blocks in ((1, 3), (2, 4), (3, 6)) for b in range(blocks)]
    wide = [f"{block}.norm1" for block in blocks]
    narrow = [f"{block}.norm3" for block in blocks if not block.startswith("layer3")]
    assert sorted(left) == sorted(wide + narrow)


class Program(torch.nn.Module):
    """A unit and its convolution as an IPU runs them."""

    def __init__(self, hand_on, act="silu"):
        super().__init__()
        self.unit = create_norm_act("ln+pn", 64, act)
        self.conv = Conv2d(64, 64, *((1,) if act == "relu" else (3, 1, 1)), bias=False)
        hand_on_to(self.unit, self.conv)
        self.hand_on = hand_on

    def forward(self, x):
        with plain_operators(hand_on=self.hand_on):
            return self.conv(self.unit(x))


@pytest.mark.parametrize(("weights", "factor"), [(torch.float16, 1.01), (torch.float32, 0.95)])
def test_float16_errs_no_more_than_the_plain_form(weights, factor):
    """The mean square of the error; float32 weights are rounded once, with the scale in them."""
    errors = {True: 0.0, False: 0.0}
    for seed in range(3):
        images = torch.randn(4, 64, 24, 24).half()
        for hand_on in errors:
            torch.manual_seed(seed)
            model = scattered(Program(hand_on)).to(weights).eval()
            executor = poptorch.inferenceModel(model)
            found = executor(images).double()
            executor.destroy()
            with torch.no_grad():
                exact = model.double()(images.double())
            errors[hand_on] += (found - exact).square().mean().item()
    assert errors[True] <= factor * errors[False]


class Textbook(Program):
    """Norm, affine, ReLU, subtraction and multiplication, one after the other."""

    def forward(self, x):
        unit = self.unit
        with plain_operators():
            y = group_norm(x, unit.num_groups, None, None, unit.eps)
            return self.conv(proxy_norm(y, *unit.moment_parameters, unit.activation))


class Trained(torch.nn.Module):
    """A program whose loss has a given gradient by the outputs."""

    def __init__(self, program):
        super().__init__()
        self.program = program

    def forward(self, x, gradient):
        out = self.program(x)
        return out, poptorch.identity_loss((out * gradient).float(), reduction="sum")


def test_float16_of_a_shift_in_the_bias_errs_no_more_than_the_textbook_form():
    """The mean square of the errors; a bound that is rounded, as a select's, moves the kink."""
    errors = {}
    for seed in range(3):
        images, gradient = torch.randn(2, 4, 64, 14, 14).half()
        exact = None
        for name in ("exact", "textbook", "select", "shift"):
            torch.manual_seed(seed)
            program = Textbook(False, "relu") if name in ("exact", "textbook") else None
            model = Trained(program or Program(name == "shift", "relu"))
            if name == "exact":
                out, loss = model.double()(images.double(), gradient.double())
                loss.backward()
                exact = [out, *(p.grad for p in model.parameters())]
                continue
            before = [p.detach().clone() for p in model.parameters()]
            optimizer = poptorch.optim.SGD(model.parameters(), lr=1.0)
            executor = poptorch.trainingModel(model, optimizer=optimizer)
            out, _ = executor(images, gradient)
            executor.copyWeightsToHost()
            found = [out, *(a - b.detach() for a, b in zip(before, model.parameters()))]
            executor.destroy()
            for part, one, other in zip(("out", "weight", "bias"), found, exact):
                errors.setdefault((name, part), []).append((one - other).square().mean().item())
    error = {key: sum(values) for key, values in errors.items()}
    for part in ("out", "bias"):
        assert error["shift", part] <= 1.15 * error["textbook", part]
    assert error["shift", "out"] <= 1.3 * error["select", "out"]
    assert error["shift", "bias"] <= 0.1 * error["select", "bias"]
