"""Forwards that are rewritten, recorded, or cannot be."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm import (
    GroupNormAct,
    convert_norms,
)


def test_forward_that_differs_in_training(functional, outputs, scramble):
    class Two(functional):
        def forward(self, x):
            y = F.relu(self.norm(self.conv(x)))
            return F.dropout(F.relu(y - 0.1), 0.5, self.training) if self.training else y * 2

    model = scramble(Two(None))
    converted = copy.deepcopy(model)
    assert convert_norms(converted, "bn").rewritten == ("",)
    x = torch.randn(2, 3, 8, 8)
    for training in (True, False):
        assert torch.equal(outputs(converted, x, training), outputs(model, x, training))


def test_rewritten_blocks_keep_class_and_can_be_copied_and_pickled(scramble):
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


def test_untraceable_networks_are_refused_or_recorded(branching, lines, scramble):
    model = scramble(branching(F.relu))
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
        convert_norms(branching(F.relu), "bn", example=torch.randn(2, 4, 8, 8))


def test_optional_arguments_are_not_guessed(functional, lines, scramble):
    class Optional(functional):
        def forward(self, x, scale=None):
            y = F.relu(self.norm(self.conv(x)))
            return y if scale is None else y * scale

    model = scramble(Optional(None))
    x = torch.randn(2, 3, 8, 8)
    expected = model(x, 2.0)
    report = convert_norms(model, "bn")
    assert "optional arguments (scale=None)" in lines(report)["norm"].reason
    torch.testing.assert_close(model(x, 2.0), expected)


def test_graph_modules_are_edited(shared, scramble):
    model = torch.fx.symbolic_trace(scramble(shared()))
    x = torch.randn(2, 8, 6, 6)
    expected = model(x)
    assert convert_norms(model, "bn").counts["fused"] == 1
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(each(x), expected)
    assert model.code.count("self.relu") == 1
