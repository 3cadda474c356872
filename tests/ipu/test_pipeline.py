"""Pipeline stages: every layer on one, parameters counted, wrong splits named."""

import pytest
import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import pipeline_stages, place, resolve_splits, split_points
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import ProxyNormAct


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
    assert [stage.layers for stage in pipeline_stages(model, ["1"])] == [["0"], ["1"]]


def test_a_split_within_a_block_shows_the_block_s_layers():
    model = create_model("resnet8", norm="ln+pn")
    stages = pipeline_stages(model, ["layer1.0.activation", "layer3.0"])
    assert [stage.layers for stage in stages] == [
        ["conv1", "bn1", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2"],
        ["layer1.0.activation", "layer2.0"],
        ["layer3.0", "avgpool", "fc"],
    ]
    assert sum(stage.parameters for stage in stages) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "splits", "layers"),
    [
        ("resnetv2_14", ["stage1/unit2/relu", "layer3/1"], ["layer2.0", "layer3.1"]),
        ("resnet14", ["stage1/unit2/relu", "fc1"], ["layer1.1.activation", "fc"]),
        ("efficientnet_b0", ["block3b", "blocks/4/0/bn2"], ["blocks.2.1", "blocks.4.0.bn2"]),
    ],
)
def test_published_names_of_splits(name, splits, layers):
    model = create_model(name, norm="ln")
    assert resolve_splits(model, splits) == layers
    assert [stage.layers[0] for stage in place(model, splits)][1:] == layers


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
        (["stage2/unit1/rel"], ["'stage2/unit1/rel' is no layer", "stage2/unit1/relu"]),
        (
            ["stage2/unit1/relu", "layer2.0"],
            ["'layer2.0' does not come after", "['layer2.0', 'stage2/unit1/relu']"],
        ),
    ],
)
def test_wrong_splits_are_refused_with_the_nearest(model, splits, parts):
    with pytest.raises(UserError) as caught:
        place(model, splits)
    for part in ["ipu.splits=", *parts]:
        assert part in str(caught.value)


def test_checkpoints_are_kept_where_they_are_asked_for(model):
    images = torch.randn(2, 1, 8, 8)
    expected = model(images)
    place(model, ["layer2.0"], checkpoints=["layer1.1", "stem"])
    torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
    kept = []
    original = poptorch.recomputationCheckpoint
    poptorch.recomputationCheckpoint = lambda t: kept.append(tuple(t.shape)) or original(t)
    try:
        model(images)
    finally:
        poptorch.recomputationCheckpoint = original
    assert kept == [(2, 16, 8, 8), (2, 16, 8, 8)]


def test_a_checkpoint_that_is_no_layer_is_named(model):
    words = r"recomputation_checkpoints=\['layer1.7'\]: 'layer1.7' is no layer; nearest: layer1"
    with pytest.raises(UserError, match=words):
        place(model, [], checkpoints=["layer1.7"])


def test_the_first_ipu_computes_the_moments_of_all_layers():
    model = create_model("resnetv2_8", "ln+pn")
    place(model, ["layer2.0", "layer3.0"])
    found = memory.capture(model, [torch.empty(2, 3, 32, 32)])
    densities = [o for o in found.operators if o.name == "erfc"]
    assert [o.stage for o in densities] == [0]
    (channels,) = found.tensors[densities[0].outputs[0]].shape
    layers = [m for m in model.modules() if isinstance(m, ProxyNormAct)]
    assert channels == sum(layer.num_features for layer in layers)
    assert found.checkpoints  # what the units read
