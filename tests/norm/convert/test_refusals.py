"""What is refused, and said of it; the network is then as it was."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm import (
    convert_norms,
)


def test_hooks_are_not_lost(lines):
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


def test_functional_norms_are_reported(functional):
    class Model(functional):
        def forward(self, x):
            return F.group_norm(super().forward(x), 2)

    report = convert_norms(Model(F.relu), "gn4+pn")
    assert [(n.type, n.outcome) for n in report.norms][1:] == [("group_norm", "refused")]


def test_no_norm_at_all(functional, scramble):
    model = scramble(functional(F.silu)).eval()
    report = convert_norms(model, "none")
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), F.silu(model.conv(x)).mean((2, 3)))
    assert set(report.removed_parameters) == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize(
    ("spec", "options", "words"),
    [
        ("gn4+pm", {}, "did you mean 'gn4.*'"),
        ("gn4+ws", {}, "leaves convolutions as they are.*use 'gn4'"),
        ("gn3+pn", {}, "norm 'bn1': the 3 groups of .* do not divide its 8 .*every norm's is 2"),
        ("bn", {"keep": ["bn7"]}, "keep='bn7': no norm of the model has this name; .*bn1"),
        ("gn4+pn", {"method": "guess"}, "unknown method 'guess'"),
        ("gn4+pn", {"activations": {nn.GLU: "silou"}}, "{GLU: .*unknown .* mean 'silu'"),
        ("gn4+pn", {"activations": {nn.GLU: nn.PReLU}}, "{GLU: .*PReLU holds 'weight'"),
    ],
)
def test_wrong_input_changes_nothing(spec, options, words, shared):
    model = shared()
    with pytest.raises(ValueError, match=words):
        convert_norms(model, spec, **options)
    assert isinstance(model.bn1, nn.BatchNorm2d)
    assert type(model) is shared


def test_a_norm_alone_cannot_be_replaced_in_place():
    with pytest.raises(UserError, match="the model is itself a norm"):
        convert_norms(nn.BatchNorm2d(4), "ln")
