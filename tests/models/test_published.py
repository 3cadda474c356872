"""The published EfficientNet's function, from plain operators, against the network's."""

import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models import create_model
from ipu_proxynorm.models.efficientnet import EfficientNet, MBConv
from ipu_proxynorm.models.layers import Layers
from ipu_proxynorm.norm import Conv2d, fold_proxy_norm, plain_operators, share_moments
from ipu_proxynorm.norm.conv import same_padding

KEYS = {"padding": "same", "proxy_method": "sampled", "proxy_scale": "published"}


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [  # TensorFlow: total = max((ceil(size / stride) - 1) * stride + kernel - size, 0)
        (224, 3, 2, (0, 1)),
        (112, 5, 2, (1, 2)),
        (15, 3, 2, (1, 1)),
        (15, 5, 2, (2, 2)),
        (8, 1, 2, (0, 0)),
        (7, 3, 1, (1, 1)),
    ],
)
def test_padding_is_tensorflows(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected


def quantile_moments(layer):
    """Return mean and 1 / standard deviation over 200 midpoint quantiles, each (C,)."""
    levels = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    t = 2**0.5 * torch.erfinv(2 * levels - 1)
    gamma, beta, proxy_gamma, proxy_beta = (p[:, None] for p in layer.moment_parameters)
    z = F.silu(gamma * ((1 + proxy_gamma) * t + proxy_beta) + beta)
    return z.mean(1), torch.rsqrt(z.var(1, unbiased=False) + 0.03)


def activated(layer, x):
    """Return the unit's output less its scale, and the scale, (1, C, 1, 1)."""
    mean, scale = (m.view(1, -1, 1, 1) for m in quantile_moments(layer))
    y = F.group_norm(x, layer.num_groups, layer.weight, layer.bias, layer.eps)
    return F.silu(y) - mean, scale


def reference(block, x):
    """Return a strided MBConv block's output as the original implementation computes it."""
    z, scale = activated(block.bn1, block.conv_pw(x))
    conv, size = block.conv_dw, x.shape[2]
    before, behind = same_padding(size, conv.kernel_size[0], 2)
    z = F.pad(z * scale, (before, behind, before, behind))
    z, scale = activated(block.bn2, F.conv2d(z, conv.weight, stride=2, groups=conv.groups))
    gate = z.mean((2, 3), keepdim=True)  # without the scale
    gate = torch.sigmoid(block.se.conv_expand(F.silu(block.se.conv_reduce(gate))))
    z = block.conv_pwl(z * (gate * scale))
    return F.group_norm(z, block.bn3.num_groups, block.bn3.weight, None, block.bn3.eps)


def scattered(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double().eval()


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_block_is_the_published_one(kernel):
    layers = Layers("ln+pn", "silu", 1e-3, padding="same", proxy_method="sampled")
    options = {"expansion": 4, "group_dim": 16, "drop_path": 0, "proxy_scale": "published"}
    block = scattered(MBConv(16, 24, kernel, 2, layers, **options))
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    expected = reference(block, x)
    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)
    with plain_operators():
        torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)


def test_the_head_drops_the_scale():
    model = scattered(EfficientNet(0.25, 0.3, norm="ln+pn", num_classes=5, **KEYS))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = model.blocks(model.bn1(model.conv_stem(images)))
    z, _ = activated(model.bn2, model.conv_head(x))
    expected = model.classifier(z.mean((2, 3)))
    logits = model(images)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    with plain_operators():
        torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    folded = fold_proxy_norm(model)
    torch.testing.assert_close(folded(images), expected, rtol=1e-6, atol=1e-8)
    share_moments(model)
    torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-9)
    other = EfficientNet(0.25, 0.3, norm="ln+pn", num_classes=5).double().eval()
    other.load_state_dict(model.state_dict())  # the same keys
    assert (other(images) - expected).abs().max() > 0.01


def test_published_and_own_are_one_network_without_proxy_norm_and_strides():
    conv = Conv2d(3, 4, 3, padding=1)
    assert not conv.same
    with pytest.raises(UserError, match="padding 'sam' is unknown: did you mean 'same'"):
        create_model("efficientnet_b0", padding="sam")
    with pytest.raises(UserError, match="resnet20 has no such option"):
        create_model("resnet20", padding="same")
