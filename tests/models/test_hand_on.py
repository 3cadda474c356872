"""The form that IPU programs have, each scale with who reads it, against the plain one."""

import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.norm import (
    Conv2d,
    Pending,
    ProxyNormAct,
    create_norm_act,
    hand_on_to,
    plain_operators,
    share_moments,
)

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


class Program(torch.nn.Module):
    """A unit and its convolution as an IPU runs them."""

    def __init__(self, hand_on):
        super().__init__()
        self.unit = create_norm_act("ln+pn", 64, "silu")
        self.conv = Conv2d(64, 64, 3, padding=1, bias=False)
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
