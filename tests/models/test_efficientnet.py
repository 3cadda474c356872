"""EfficientNet: where the proxy's scale goes, what drops in training, how groups are made."""

import math

import pytest
import torch

from ipu_proxynorm.models import create_model
from ipu_proxynorm.models.efficientnet import EfficientNet
from ipu_proxynorm.models.layers import DropPath
from ipu_proxynorm.norm import fold_proxy_norm, plain_operators


@pytest.mark.parametrize("in_gate", [True, False])
def test_where_the_scale_goes_is_no_part_of_the_function(in_gate):
    options = {"width": 0.25, "depth": 0.4, "num_classes": 5, "norm": "ln+pn"}
    model = EfficientNet(**options).double().eval()
    other = EfficientNet(**options, proxy_scale_in_gate=in_gate).double().eval()
    other.load_state_dict(model.state_dict())
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with plain_operators():
        torch.testing.assert_close(other(images), model(images), rtol=1e-12, atol=1e-12)
    expected = model(images)
    torch.testing.assert_close(fold_proxy_norm(other)(images), expected, rtol=1e-6, atol=1e-9)


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
