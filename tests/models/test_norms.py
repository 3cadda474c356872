"""Any norm spec on any network: shapes, numbers, and a gradient for every parameter."""

import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import ProxyNormAct, parameter_groups

SPECS = ["bn", "in", "ln", "gn4", "none", "ln+pn", "gn4+pn", "ln+pn+ws", "bn+ws"]


@pytest.mark.parametrize("norm", SPECS)
def test_forward_and_backward(small, family, norm):
    model = small(family, norm=norm, num_classes=5)
    logits = model(torch.randn(3, 3, 64, 64))
    assert logits.shape == (3, 5)
    assert torch.isfinite(logits).all()
    F.cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_an_image_s_output_does_not_depend_on_the_others_in_its_batch(small, family):
    model = small(family, norm="gn4+pn", num_classes=5).double().eval()
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    images[1:] *= 100
    torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "proxies", "scales"),
    [
        # v1.5: two norms within each of three branches and the stem's; three end branches, two
        # shortcuts. v2: an activation follows every norm. EfficientNet: stem, head and two norms
        # in each of ten blocks, one in the first; ten projections.
        ("resnet bottleneck", 1 + 2 * 3, 3 + 2),
        ("resnetv2 bottleneck", 3 * 3 + 1, 0),
        ("efficientnet", 2 + 1 + 2 * 9, 10),
    ],
)
def test_proxy_norm_stands_where_an_activation_follows(small, family, proxies, scales):
    model = small(family, norm="ln+pn", num_classes=5)
    norms = [m for m in model.modules() if hasattr(m, "spec")]
    assert sum(isinstance(norm, ProxyNormAct) for norm in norms) == proxies
    rest = [norm for norm in norms if not isinstance(norm, ProxyNormAct)]
    assert len(rest) == scales
    for norm in rest:  # a scale, no shift, no activation
        assert norm.bias is None
        assert norm.activation.name == "identity"
    for spec in ("bn", "ln"):
        plain = small(family, norm=spec, num_classes=5)
        norms = [m for m in plain.modules() if hasattr(m, "eps")]
        assert len(norms) == proxies + scales
        assert all(norm.bias is not None for norm in norms)


@pytest.mark.parametrize("family", ["resnet bottleneck", "efficientnet"])
def test_only_weights_and_proxies_decay(small, family):
    model = small(family, norm="ln+pn", num_classes=5)
    groups = {group["name"]: group["params"] for group in parameter_groups(model, 1e-4)}
    assert all(p.dim() > 1 for p in groups["decayed"])
    assert all(p.dim() == 1 for p in groups["not decayed"])
    assert len(groups["proxy"]) == 2 * sum(isinstance(m, ProxyNormAct) for m in model.modules())


@pytest.mark.parametrize("family", ["resnet basic", "resnet bottleneck", "resnext"])
@pytest.mark.parametrize("norm", ["bn", "ln+pn", "none"])
def test_zero_initialised_branches_leave_the_shortcut(small, family, norm):
    model = small(family, norm=norm, zero_init_last=True)
    block = model.layer2[1]  # the shape stays: the shortcut is the identity
    x = torch.rand(2, block.conv1.in_channels, 8, 8)  # not negative: the ReLU keeps it
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    assert not torch.equal(small(family, norm=norm).layer2[1](x), x)


@pytest.mark.parametrize("family", ["resnetv2 basic", "resnetv2 bottleneck", "resnextv2"])
def test_zero_initialised_branches_of_version_2_end_in_a_zero_convolution(small, family):
    model = small(family, norm="ln+pn", zero_init_last=True)
    block = model.layer2[1]
    x = torch.randn(2, block.conv1.in_channels, 8, 8)
    torch.testing.assert_close(block(x), x, rtol=0, atol=0)
    block(x).square().sum().backward()
    assert block.last_conv.weight.grad.abs().sum() > 0  # from where training starts


def test_what_cannot_be_zero_is_refused():
    with pytest.raises(UserError, match=r"zero_init_last=True: .*norm=ln\+ws"):
        create_model("resnetv2_8", "ln+ws", zero_init_last=True)
    create_model("resnet8", "ln+ws", zero_init_last=True)  # its last norm's scale can
