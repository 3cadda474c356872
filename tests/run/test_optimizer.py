"""Optimisers: parameter groups, and 20 updates against references in float64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import OPTIMIZERS, OptimizerConfig
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import create_norm_act
from ipu_proxynorm.run.optimizer import create_optimizer, scaled_learning_rate, set_loss_scaling
from ipu_proxynorm.run.schedule import loss_scaling_at


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_and_proxy_parameters_decay_and_nothing_else(name):
    model = create_model("resnetv2_8", norm="gn4+pn")
    config = OptimizerConfig(name=name, lr=0.2, weight_decay=0.01, proxy_weight_decay=0.002)
    optimizer = create_optimizer(config, model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        decayed = 0.002 if "proxy" in parameter_name else 0.01 if parameter.dim() > 1 else 0
        assert decay[id(parameter)] == decayed, parameter_name
    assert {g["lr"] for g in optimizer.param_groups} == {0.2}


def test_proxy_parameters_decay_like_weights_unless_told_otherwise():
    model = create_norm_act("gn2+pn", 4)
    (other, proxy) = create_optimizer(OptimizerConfig(weight_decay=0.03), model).param_groups
    assert (other["weight_decay"], proxy["weight_decay"]) == (0, 0.03)


def test_the_learning_rate_is_stated_for_a_batch():
    assert scaled_learning_rate(OptimizerConfig(lr=0.1), 768) == 0.1
    config = OptimizerConfig(lr=2**-14, lr_batch=1)
    assert scaled_learning_rate(config, 768) == 768 * 2**-14
    optimizer = create_optimizer(OptimizerConfig(lr=0.1, lr_batch=256), nn.Linear(1, 1), 1024)
    assert {group["lr"] for group in optimizer.param_groups} == {0.4}


class Network(nn.Module):
    """Every kind of parameter: decayed, norm's, proxy's. SiLU, so that no value is at a kink."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = create_norm_act("gn2+pn", 8, "silu")
        self.last = nn.Linear(8, 3)

    def forward(self, x, labels=None):
        logits = self.last(self.norm(self.first(x)))
        if labels is None:
            return logits
        return poptorch.identity_loss(F.cross_entropy(logits, labels), reduction="none")


def decay_of(name, config):
    return config.weight_decay if name.endswith(("first.weight", "last.weight")) else 0.0


class WrittenOut:
    """One update of TensorFlow's RMSprop and of LAMB from their equations, in float64."""

    def __init__(self, network, config):
        self.network, self.config, self.steps = network, config, 0
        self.state = {name: {} for name, _ in network.named_parameters()}

    def step(self):
        self.steps += 1
        with torch.no_grad():
            for name, w in self.network.named_parameters():
                proxy = "proxy" in name
                wd = self.config.proxy_weight_decay if proxy else decay_of(name, self.config)
                getattr(self, self.config.name)(w, w.grad, wd, self.state[name])

    def rmsprop_tf(self, w, g, wd, state):
        g = g + wd * w
        alpha, eps, momentum = self.config.alpha, self.config.eps, self.config.momentum
        square = alpha * state.get("square", torch.ones_like(w)) + (1 - alpha) * g**2
        velocity = momentum * state.get("velocity", 0) + self.config.lr * g / (square + eps).sqrt()
        state.update(square=square, velocity=velocity)
        w -= velocity

    def lamb(self, w, g, wd, state):
        beta1, beta2 = self.config.betas
        m = beta1 * state.get("m", 0) + (1 - beta1) * g
        v = beta2 * state.get("v", 0) + (1 - beta2) * g**2
        state.update(m=m, v=v)
        corrected = m / (1 - beta1**self.steps)
        root = (v / (1 - beta2**self.steps)).sqrt()
        update = corrected / (root + self.config.eps) + wd * w
        norms = float(w.norm()), float(update.norm())
        ratio = min(norms[0], self.config.max_weight_norm) / norms[1] if all(norms) else 1.0
        w -= self.config.lr * ratio * update


def reference(network, config):
    """The reference optimiser over float64 parameters."""
    if config.name in ("rmsprop_tf", "lamb"):
        return WrittenOut(network, config)
    named = list(network.named_parameters())
    groups = [
        {
            "params": [p],
            "weight_decay": config.proxy_weight_decay if "proxy" in n else decay_of(n, config),
        }
        for n, p in named
    ]
    lr = config.lr
    if config.name.startswith("sgd"):
        return torch.optim.SGD(groups, lr, momentum=config.momentum, nesterov=config.nesterov)
    if config.name == "rmsprop":
        return torch.optim.RMSprop(
            groups, lr, alpha=config.alpha, eps=config.eps, momentum=config.momentum
        )
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.name]
    return kind(groups, lr, betas=tuple(config.betas), eps=config.eps)


SGD = {"lr": 0.2, "momentum": 0.8}
RMSPROP = {"lr": 0.01, "momentum": 0.7, "alpha": 0.95, "eps": 1e-3}
ADAM = {"lr": 0.02, "betas": [0.8, 0.95], "eps": 1e-3}
CASES = [
    ("sgd", {**SGD, "nesterov": False}),
    ("sgd", {**SGD, "nesterov": True}),
    ("sgd_combined", {**SGD, "nesterov": False}),
    ("rmsprop", RMSPROP),
    ("rmsprop_tf", RMSPROP),
    ("adam", ADAM),
    ("adamw", ADAM),
    ("lamb", {**ADAM, "max_weight_norm": 1.5}),
]


@pytest.mark.parametrize(("name", "values"), CASES, ids=[f"{n}-{len(v)}" for n, v in CASES])
def test_twenty_updates_equal_a_reference_in_float64(name, values):
    # The loss scaling doubles twice on the way: the updates do not depend on it, but for the
    # velocity of sgd, which PopTorch keeps in units of the loss scaling.
    config = OptimizerConfig(
        name=name,
        weight_decay=0.02,
        proxy_weight_decay=0.05,
        loss_scaling=64.0,
        initial_loss_scaling=16.0,
        **values,
    )
    network = Network()
    start = {name: p.detach().clone() for name, p in network.named_parameters()}
    exact = copy.deepcopy(network).double()
    optimizer, plain = create_optimizer(config, network), reference(exact, config)
    options = poptorch.Options().replicationFactor(2).randomSeed(0)
    options.Training.gradientAccumulation(4)
    executor = poptorch.trainingModel(network, options, optimizer)
    scalings = []
    for step in range(20):
        x, labels = torch.randn(16, 6), torch.randint(3, (16,))
        scalings.append(loss_scaling_at(config, step / 10, 2))
        set_loss_scaling(optimizer, scalings[-1])
        if name == "sgd" and step > 0:
            for state in plain.state.values():
                state["momentum_buffer"] *= scalings[-2] / scalings[-1]
        executor.setOptimizer(optimizer)
        executor(x, labels)
        exact.zero_grad()
        F.cross_entropy(exact(x.double()), labels).backward()
        plain.step()
    executor.copyWeightsToHost()
    assert sorted(set(scalings)) == [16, 32, 64]
    for (key, got), want in zip(network.named_parameters(), exact.parameters()):
        assert not torch.allclose(got, start[key], atol=1e-3, rtol=0), key
        torch.testing.assert_close(got.double(), want, rtol=2e-4, atol=2e-5)
