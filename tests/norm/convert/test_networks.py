"""torchvision's and timm's networks, converted."""

import copy
import functools
import re
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ipu_proxynorm.norm import (
    BatchNormAct,
    convert_norms,
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


@pytest.mark.parametrize(("library", "name"), NETWORKS)
def test_batch_norm_to_batch_norm_changes_nothing(library, name, outputs, scramble):
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


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_recorded_calls_say_what_traced_ones_say(library, monkeypatch, outputs):
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
