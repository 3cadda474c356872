"""Proxy Norm with other moments: against a plain form of each, through the simulator and alone."""

import pytest
import torch

from ipu_proxynorm.analysis.proxies import PROXIES, replace_proxies
from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm import create_norm_act, parameter_groups

EPS, MOMENTUM = 0.03, 0.1


def unit(kind):
    """Return a unit with Proxy Norm, of parameters that are no special values, changed."""
    torch.manual_seed(0)
    made = create_norm_act("gn2+pn", 6)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            proxy = name.startswith("proxy")
            parameter.copy_(0.3 * torch.randn(6) + (0.0 if proxy or name == "bias" else 1.0))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3), made).double()
    assert replace_proxies(model, kind) == 1
    return model


@pytest.mark.parametrize("kind", PROXIES)
def test_one_unit_in_several_places_is_replaced_in_all_and_stays_one(kind):
    made = create_norm_act("gn2+pn", 6)
    model = torch.nn.ModuleDict({"one": made, "two": made, "in": torch.nn.Sequential(made)})
    assert replace_proxies(model, kind) == 1
    assert model["one"] is model["two"] is model["in"][0]
    assert (model["one"] is made) == (kind in ("assumed", "frozen"))


class Plain:
    """The same in sums and loops: groups by hand, moments by NumPy's definition."""

    def __init__(self, unit, mean, variance):
        self.weight, self.bias = unit.weight, unit.bias
        self.mean, self.variance = mean.clone(), variance.clone()

    def activation(self, x):
        n, c = x.shape[:2]
        y = torch.empty_like(x)
        for image in range(n):
            for group in range(2):
                part = x[image, 3 * group : 3 * group + 3]
                centred = part - part.mean()
                y[image, 3 * group : 3 * group + 3] = (
                    centred / (centred.pow(2).mean() + 1e-5).sqrt()
                )
        return (y * self.weight.view(1, c, 1, 1) + self.bias.view(1, c, 1, 1)).clamp_min(0)

    def __call__(self, x, kind, training):
        z = self.activation(x)
        found = [z[:, c] for c in range(z.shape[1])]
        if training and kind != "frozen":
            correction = 1 if kind == "true" else 0  # as torch's Batch Norm keeps its variance
            for c, values in enumerate(found):
                variance = values.detach().var(correction=correction)
                self.mean[c] += MOMENTUM * (values.detach().mean() - self.mean[c])
                self.variance[c] += MOMENTUM * (variance - self.variance[c])
        own = training and kind == "true"
        mean = torch.stack([v.mean() for v in found]) if own else self.mean
        variance = torch.stack([v.var(correction=0) for v in found]) if own else self.variance
        shape = (1, -1, 1, 1)
        return (z - mean.view(shape)) / (variance.view(shape) + EPS).sqrt()


def gaussian_moments(unit, proxied):
    """Return mean and variance of ReLU of a Gaussian, by summing over a fine grid."""
    t = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    p = torch.exp(-t.square() / 2)
    p /= p.sum()
    center, scale = proxied
    z = (center.unsqueeze(1) + scale.unsqueeze(1) * t).clamp_min(0)
    mean = (z * p).sum(1)
    return mean, ((z - mean.unsqueeze(1)).square() * p).sum(1)


@pytest.mark.parametrize("kind", ["running", "true"])
def test_values_gradients_and_averages_are_the_plain_forms(kind):
    original = unit("assumed")[1]
    center = original.weight * original.proxy_bias + original.bias
    scale = original.weight * (1 + original.proxy_weight)
    model = unit(kind)
    with torch.no_grad():
        plain = Plain(model[1], *gaussian_moments(original, (center, scale)))
    for training in (True, True, False):
        model.train(training)
        x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
        outputs = model(x), plain(model[0](x), kind, training)
        assert torch.allclose(*outputs, rtol=0, atol=1e-7)
        probe = torch.randn_like(outputs[0])
        gradients = [
            torch.autograd.grad((out * probe).sum(), list(model.parameters())) for out in outputs
        ]
        for ours, theirs in zip(*gradients):
            assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    assert torch.allclose(model[1].running_mean, plain.mean, atol=1e-8)
    assert torch.allclose(model[1].running_var, plain.variance, atol=1e-8)


def test_a_frozen_proxy_keeps_its_values_and_has_no_place_in_the_optimizer():
    model, assumed = unit("frozen"), unit("assumed")
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert torch.equal(model(x), assumed(x))
    frozen = {id(model[1].proxy_weight), id(model[1].proxy_bias)}
    groups = parameter_groups(model, 0.1)
    assert not frozen & {id(p) for group in groups for p in group["params"]}


@pytest.mark.parametrize("kind", ["running", "true"])
def test_in_a_program_the_averages_move_and_the_update_is_autograds(kind):
    class Program(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            out = self.model(x)
            return out, poptorch.identity_loss(out.square().mean(), reduction="none")

    model, plain = unit(kind).float(), unit(kind).float()
    x = torch.randn(4, 3, 6, 6)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    training = poptorch.trainingModel(Program(model.train()), poptorch.Options(), optimizer)
    training(x)
    training(x)
    training.copyWeightsToHost()
    by_hand = torch.optim.SGD(plain.train().parameters(), lr=0.1)
    for _ in range(2):
        by_hand.zero_grad()
        plain(x).square().mean().backward()
        by_hand.step()
    for name, value in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[name], value, atol=1e-5), name


def test_what_is_no_kind_and_no_proxy_is_refused():
    with pytest.raises(UserError, match=r"--proxy: 'truth' is unknown: did you mean 'true'\?"):
        replace_proxies(torch.nn.Sequential(create_norm_act("ln+pn", 4)), "truth")
    for kind in PROXIES:
        with pytest.raises(UserError, match="the network has no Proxy Norm"):
            replace_proxies(torch.nn.Sequential(create_norm_act("ln", 4)), kind)
