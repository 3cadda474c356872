"""timm's networks made with norms of ours, beside the same networks converted."""

import copy
import pickle

import pytest
import timm
import torch
from torch import nn

from ipu_proxynorm.norm import (
    BatchNormAct,
    GroupNormAct,
    ProxyNormAct,
    convert_norms,
    timm_norm_layer,
)


@pytest.mark.parametrize(
    ("name", "spec"),
    [
        ("efficientnet_b0", "gn4+pn"),
        ("regnety_002", "ln+pn"),
        ("repvgg_a0", "gn4+pn"),
        ("mnasnet_small", "bn"),
        ("resnet18", "bn"),
    ],
)
def test_a_network_made_is_the_network_converted(name, spec):
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=10, norm_layer=timm_norm_layer(spec))
    converted = timm.create_model(name, num_classes=10)
    report = convert_norms(converted, spec)
    assert report.counts["refused"] == 0
    units = [type(m) for m in made.modules() if isinstance(m, (BatchNormAct, GroupNormAct))]
    assert len(units) == len(report.norms)
    assert units.count(ProxyNormAct) == (report.counts["fused"] if "+pn" in spec else 0)
    with torch.no_grad():
        for name, parameter in converted.named_parameters():
            if "proxy" in name:
                parameter.normal_(0, 0.3)
    made.load_state_dict(converted.state_dict())
    x = torch.randn(2, 3, 32, 32)
    for training in (True, False):
        with torch.no_grad():
            torch.testing.assert_close(made.train(training)(x), converted.train(training)(x))


def test_a_network_that_activates_apart_is_told_where_proxy_norm_goes():
    with pytest.raises(
        ValueError, match=r"without their activations.*convert_norms\(model, 'ln\+pn"
    ):
        timm.create_model("resnet18", norm_layer=timm_norm_layer("ln+pn"))


def test_a_unit_takes_what_timms_own_takes():
    layer = timm.layers.get_norm_act_layer(timm_norm_layer("gn4+pn", eps=1e-3), act_layer="silu")
    unit = layer(8, inplace=True, device="meta", dtype=torch.float64)
    assert isinstance(unit, ProxyNormAct)
    assert (unit.activation.name, unit.eps) == ("silu", 1e-3)
    assert (unit.weight.device.type, unit.weight.dtype) == ("meta", torch.float64)
    alone = layer(8, apply_act=False)
    assert (type(alone), alone.bias) == (GroupNormAct, None)
    leaky = layer(8, act_layer=nn.LeakyReLU, act_kwargs={"negative_slope": 0.3})
    x = torch.randn(4, 8, 5, 5)
    norm = nn.functional.group_norm(x, 4, eps=1e-3)
    plain = timm_norm_layer("gn4", eps=1e-3)(8, act_layer=nn.LeakyReLU)
    torch.testing.assert_close(plain(x), nn.functional.leaky_relu(norm))
    assert "0.3" in repr(leaky)
    assert layer(8, drop_layer=nn.Identity) is not None
    assert layer(8, act_layer=None).activation.name == "identity"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"affine": False}, "have a scale, a shift"),
        ({"drop_layer": timm.layers.DropBlock2d}, "drop_block_rate=0"),
        ({"act_layer": nn.PReLU}, "PReLU is not known as an element-wise activation"),
    ],
)
def test_what_a_unit_has_not_is_refused(arguments, words):
    layer = timm.layers.get_norm_act_layer(timm_norm_layer("gn4+pn"), act_layer="relu")
    with pytest.raises(ValueError, match=words):
        layer(8, **arguments)


def test_specs_and_versions(monkeypatch):
    with pytest.raises(ValueError, match=r"\+ws is for convolutions"):
        timm_norm_layer("gn4+ws")
    layer = timm_norm_layer("gn4")
    for again in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(again(8), GroupNormAct)
    monkeypatch.delattr("timm.layers.create_norm_act._NORM_ACT_REQUIRES_ARG")
    with pytest.raises(ImportError, match=r"timm 1\.0"):
        timm_norm_layer("gn4")
