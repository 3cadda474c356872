"""EfficientNet: where the proxy's scale goes, what drops in training, how groups are made."""

import math

import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.models import create_model
from ipu_proxynorm.models.efficientnet import EfficientNet
from ipu_proxynorm.models.layers import DropPath
from ipu_proxynorm.norm import DelayedScaleProxyNormAct, fold_proxy_norm, share_moments


def pair(norm="ln+pn", **options):
    """Return a small network twice: the scale of Proxy Norm before the gate, and within it."""
    options = {"width": 0.25, "depth": 0.4, "drop_path": 0, "num_classes": 5, **options}
    before = EfficientNet(norm=norm, **options)
    with torch.no_grad():
        for parameter in before.parameters():
            if parameter.dim() == 1:  # away from the initial values, where much is 0 or 1
                parameter.add_(0.2 * torch.randn_like(parameter))
    within = EfficientNet(norm=norm, proxy_scale_in_gate=True, **options)
    within.load_state_dict(before.state_dict())
    return before, within


def outputs_and_gradients(model, images):
    logits = model(images)
    F.cross_entropy(logits, torch.arange(len(images)) % 5).backward()
    return logits, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        ("ln+pn", {"group_dim": 16, "expansion": 4}),
        ("gn4+pn", {}),
        ("ln+pn", {"act_layer": "relu"}),
        ("ln", {}),
    ],
)
def test_scale_in_the_gate_is_the_same_function(norm, options):
    before, within = (model.double() for model in pair(norm, **options))
    count = sum(isinstance(m, DelayedScaleProxyNormAct) for m in within.modules())
    assert count == (10 if norm.endswith("+pn") else 0)
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    for expected, found in zip(
        *(outputs_and_gradients(m.eval(), images) for m in (before, within))
    ):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_scale_in_the_gate_in_float32_with_shared_moments_and_folded():
    before, within = (model.eval() for model in pair())
    images = torch.randn(3, 3, 64, 64)
    expected = before(images)
    torch.testing.assert_close(within(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fold_proxy_norm(within)(images), expected, rtol=1e-4, atol=1e-5)
    share_moments(within)
    torch.testing.assert_close(within(images), expected, rtol=1e-4, atol=1e-5)


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    drop = DropPath(0.25)
    x = torch.ones(4000, 2, 3, 3)
    y = drop(x)
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    per_image = y.flatten(1)
    assert torch.equal(per_image.amin(1), per_image.amax(1))  # an image as a whole
    # The share kept is binomial: 4 standard deviations of it.
    assert (per_image[:, 0] > 0).float().mean().item() == pytest.approx(
        0.75, abs=4 * math.sqrt(0.75 * 0.25 / 4000)
    )
    assert drop.eval()(x) is x


def test_validation_drops_nothing():
    model = create_model("efficientnet_b0", "ln", 5, drop_path=0.9, dropout=0.9).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_options_reach_the_layers():
    with torch.device("meta"):
        model = create_model(
            "efficientnet_b0", "ln", 5, group_dim=16, expansion=4, drop_path=0.4, dropout=0.1
        )
    convolution = model.blocks[3][1].conv_dw
    assert (convolution.in_channels, convolution.groups) == (4 * 80, 20)
    assert model.blocks[6][0].conv_dw.in_channels == 4 * 192
    assert model.blocks[5][3].drop_path.rate == pytest.approx(0.4 * 14 / 16)
    assert model.dropout.p == 0.1
    assert model.blocks[3][1].se.conv_reduce.out_channels == 20  # a quarter of the block's input


def test_squeeze_and_excite_is_not_proxy_normalized():
    with torch.device("meta"):
        model = create_model("efficientnet_b0", "ln+pn", 5)
    for stage in model.blocks:
        for block in stage:
            assert not list(block.se.activation.parameters())
            assert block.se.activation.activation.name == "silu"
