"""Recording: the tensors are those after each normalization, of our networks and of others'."""

import pytest
import torch
import torchvision
from torch import nn

from ipu_proxynorm.analysis import norm_layers, normalized, power_decomposition, record_power
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import create_norm_act


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        ("bn", nn.BatchNorm2d(8, affine=False)),
        ("in", nn.InstanceNorm2d(8)),
        ("ln", nn.GroupNorm(1, 8, affine=False)),
        ("gn4", nn.GroupNorm(4, 8, affine=False)),
        ("ln+pn", nn.GroupNorm(1, 8, affine=False)),
        ("gn4+pn", nn.GroupNorm(4, 8, affine=False)),
    ],
)
def test_y_is_the_norm_alone_whatever_affine_activation_and_proxy(spec, plain):
    unit = create_norm_act(spec, 8, dtype=torch.float64)
    with torch.no_grad():
        unit.weight.normal_()
        unit.bias.normal_()
    x = torch.randn(6, 8, 5, 5, dtype=torch.float64) * 3 + 1
    torch.testing.assert_close(normalized(unit, x), plain.double()(x), rtol=1e-12, atol=1e-12)


def test_batch_norm_in_evaluation_uses_the_running_statistics():
    layer = nn.BatchNorm2d(3, affine=False).double()
    layer(torch.randn(16, 3, 4, 4, dtype=torch.float64) * 2 + 5)
    x = torch.randn(4, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(normalized(layer.eval(), x), layer(x))


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.LayerNorm(6, elementwise_affine=False), torch.randn(4, 5, 6)),
        (nn.LayerNorm((3, 4, 4), elementwise_affine=False), torch.randn(2, 3, 4, 4)),
        (nn.InstanceNorm1d(3), torch.randn(2, 3, 7)),
        (nn.GroupNorm(2, 4, affine=False), torch.randn(2, 4, 3, 3)),
        (nn.BatchNorm1d(4, affine=False), torch.randn(8, 4)),
    ],
)
def test_layers_of_torch(layer, x):
    y = normalized(layer, x)
    expected = layer(x)
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        expected = expected.movedim(-1, 1)  # instances, channels, places
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_float16_is_normalized_in_float32():
    layer = nn.GroupNorm(1, 4)
    x = torch.full((1, 4, 64, 64), 300.0, dtype=torch.float16)
    x[:, :2] = -300
    assert power_decomposition(normalized(layer, x)).mean_power == pytest.approx(1.0)


def test_records_each_norm_in_order_of_execution():
    model = create_model("resnetv2_8", norm="ln+pn", in_chans=1)
    images = torch.randn(6, 1, 8, 8)
    found = record_power(model, [images])
    assert list(found)[:2] == ["layer1.0.norm1", "layer1.0.norm2"]
    assert list(found)[-1] == "norm"
    inside = []
    handle = model.layer2[0].norm1.register_forward_pre_hook(lambda _, x: inside.append(x[0]))
    with torch.no_grad():
        model(images)
    handle.remove()
    expected = power_decomposition(nn.GroupNorm(1, 16, affine=False).double()(inside[0].double()))
    assert found["layer2.0.norm1"].p1 == pytest.approx(expected.p1, abs=1e-5)


@pytest.mark.parametrize("norm", ["bn", "in", "ln", "gn4", "ln+pn", "ln+ws"])
def test_the_powers_of_every_layer_sum_to_its_mean_power(norm):
    model = create_model("resnetv2_8", norm=norm, in_chans=1)
    for name, power in record_power(model, torch.randn(2, 8, 1, 16, 16)).items():
        assert power.total == pytest.approx(power.mean_power, rel=1e-5), name
        assert power.mean_power == pytest.approx(1.0, abs=2e-3), name


@pytest.mark.parametrize("norm", ["in", "ln", "gn4+pn"])
def test_figures_do_not_depend_on_the_batch_size(norm):
    model = create_model("resnetv2_8", norm=norm, in_chans=1).double()
    images = torch.randn(12, 1, 8, 8, dtype=torch.float64)
    whole = record_power(model, [images])
    for name, power in record_power(model, images.split(5)).items():
        for key, value in vars(power).items():
            assert value == pytest.approx(getattr(whole[name], key), rel=1e-6, abs=1e-12)


def test_what_theory_says_of_batch_and_instance_norm():
    images = torch.randn(16, 1, 8, 8)
    for power in record_power(create_model("resnetv2_8", norm="bn", in_chans=1), [images]).values():
        assert power.p1 < 1e-10
    found = record_power(create_model("resnetv2_8", norm="in", in_chans=1), [images])
    for power in found.values():
        assert power.p2 < 1e-8
        assert power.p4 < 1e-3  # 0 but for ε


def test_recording_leaves_the_network_as_it_was():
    model = create_model("resnetv2_8", norm="bn", in_chans=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record_power(model, [torch.randn(4, 1, 8, 8)])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_other_peoples_networks():
    found = record_power(torchvision.models.resnet18().train(), [torch.randn(3, 3, 64, 64)])
    assert len(found) == 20
    assert all(power.p1 < 1e-10 for power in found.values())
    convnext = torchvision.models.ConvNeXt(
        [torchvision.models.convnext.CNBlockConfig(8, None, 2)], num_classes=3
    )
    for power in record_power(convnext, [torch.randn(3, 3, 32, 32)]).values():
        assert power.mean_power == pytest.approx(1.0, abs=1e-3)


def test_a_layer_that_runs_twice_is_recorded_twice():
    norm = nn.GroupNorm(1, 4)
    found = record_power(nn.Sequential(norm, nn.ReLU(), norm), torch.randn(2, 3, 4, 2, 2))
    assert list(found) == ["0", "2"] or list(found) == ["0", "0#2"]
    assert all(power.instances == 6 for power in found.values())


def test_layers_by_pattern_and_what_matches_nothing():
    model = create_model("resnetv2_8", norm="ln", in_chans=1)
    assert list(norm_layers(model, "layer2.*")) == ["layer2.0.norm1", "layer2.0.norm2"]
    with pytest.raises(UserError, match=r"'layer2.0.norm' matches none .* nearest: layer2.0.norm"):
        norm_layers(model, "layer2.0.norm")
    with pytest.raises(UserError, match="Linear has no normalization to analyse"):
        norm_layers(nn.Linear(2, 2))
