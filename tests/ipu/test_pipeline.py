"""Pipeline stages: every layer on one, parameters counted, wrong splits named."""

import pytest
import torch
from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import pipeline_stages, place, split_points
from models import create_model


@pytest.fixture
def model():
    return create_model("resnetv2_14", norm="ln+pn", in_chans=1)


@pytest.mark.parametrize("splits", [[], ["layer2.0"], ["layer1.1", "layer2.1", "norm"], ["fc"]])
def test_stages_hold_every_parameter_once_and_begin_at_the_splits(model, splits):
    stages = pipeline_stages(model, splits)
    assert [stage.ipu for stage in stages] == list(range(len(splits) + 1))
    assert [stage.layers[0] for stage in stages] == ["stem", *splits]
    assert sum(stage.parameters for stage in stages) == sum(p.numel() for p in model.parameters())
    layers = [layer for stage in stages for layer in stage.layers]
    assert layers == [
        "stem", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1",
        "norm", "pool", "fc",
    ]  # fmt: skip


def test_other_networks_split_at_any_module():
    model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))
    assert split_points(model) == ["0", "1", "1.0", "1.1"]
    assert [stage.parameters for stage in pipeline_stages(model, ["1.1"])] == [9, 16]
    assert [stage.layers for stage in pipeline_stages(model, ["1"])] == [["0"], ["1.0", "1.1"]]


def test_place_changes_neither_names_nor_results(model):
    images = torch.randn(2, 1, 8, 8)
    expected, names = model(images), list(model.state_dict())
    place(model, ["layer2.0", "layer3.0"])
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    assert list(model.state_dict()) == names


def test_place_puts_blocks_where_it_says(model):
    place(model, ["layer2.0", "layer3.1"])
    # PopTorch refuses a second block on a module, and only where there is one already.
    for name in ("layer2.0", "layer3.1"):
        with pytest.raises(poptorch.Error, match="already been assigned"):
            poptorch.BeginBlock(model.get_submodule(name), ipu_id=0)
    poptorch.BeginBlock(model.get_submodule("layer1.0"), ipu_id=0)


@pytest.mark.parametrize(
    ("splits", "parts"),
    [
        (["layer2"], ["'layer2' is no layer", "layer2.0"]),
        (["layer2.0.conv1"], ["'layer2.0.conv1'", "layer2.0"]),
        (["bogus"], ["'bogus'", "layer1.0"]),
        (["layer3.0", "layer2.0"], ["'layer2.0' does not come after 'layer3.0'", "['layer2.0', "]),
        (["layer2.0", "layer2.0"], ["'layer2.0' does not come after 'layer2.0'"]),
    ],
)
def test_wrong_splits_are_refused_with_the_nearest(model, splits, parts):
    with pytest.raises(UserError) as caught:
        place(model, splits)
    for part in ["ipu.splits=", *parts]:
        assert part in str(caught.value)
