"""ResNet v2: the published sizes, an independent forward pass, and no dependence on the batch."""

import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.models import MODELS, create_model

# Weights of ResNet v2 with Batch Norm, counted from the architecture; for 1,000 classes (224x224)
# and 10 classes (32x32).
PARAMETERS = {"resnetv2_50": 25_549_352, "resnetv2_101": 44_541_480, "resnetv2_152": 60_185_128}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_published_parameter_counts(name, count):
    model = create_model(name, norm="bn", num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == count


def plain_basic(weights, prefix, x, stride):
    """A pre-activation basic block with Batch Norm in evaluation mode, in plain functions."""

    def unit(name, x):
        get = lambda part: weights[f"{prefix}.{name}.{part}"]  # noqa: E731
        x = F.batch_norm(
            x, get("running_mean"), get("running_var"), get("weight"), get("bias"), False
        )
        return F.relu(x)

    z = unit("norm1", x)
    key = f"{prefix}.shortcut.weight"
    short = F.conv2d(z, weights[key], stride=stride) if key in weights else x
    z = F.conv2d(z, weights[f"{prefix}.conv1.weight"], stride=stride, padding=1)
    return short + F.conv2d(unit("norm2", z), weights[f"{prefix}.conv2.weight"], padding=1)


def test_forward_equals_plain_functions():
    model = create_model("resnetv2_14", norm="bn", in_chans=1).double()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    model.eval()
    weights = model.state_dict()
    images = torch.randn(2, 1, 16, 16, dtype=torch.float64)
    x = F.conv2d(images, weights["stem.weight"], padding=1)
    for group, first in (("layer1", 1), ("layer2", 2), ("layer3", 2)):
        for index, stride in ((0, first), (1, 1)):
            x = plain_basic(weights, f"{group}.{index}", x, stride)
    x = F.batch_norm(
        x, weights["norm.running_mean"], weights["norm.running_var"], weights["norm.weight"],
        weights["norm.bias"], False,
    )  # fmt: skip
    logits = F.linear(F.relu(x).mean((2, 3)), weights["fc.weight"], weights["fc.bias"])
    torch.testing.assert_close(model(images), logits)


@pytest.mark.parametrize(
    ("name", "size"), [("resnetv2_20", 32), ("resnetv2_18", 64), ("resnetv2_50", 64)]
)
def test_resolution_and_channels_of_the_last_block(name, size):
    model = create_model(name, norm="ln", num_classes=7)
    seen = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    assert model(torch.randn(2, 3, size, size)).shape == (2, 7)
    channels, reduced = {
        "resnetv2_20": (64, 4),
        "resnetv2_18": (512, 32),
        "resnetv2_50": (2048, 32),
    }[name]
    assert seen == [(2, channels, size // reduced, size // reduced)]


@pytest.mark.parametrize("norm", ["ln", "gn4", "ln+pn", "gn4+pn"])
@pytest.mark.parametrize("act_layer", ["relu", "silu"])
def test_an_image_s_output_does_not_depend_on_the_others_in_its_batch(norm, act_layer):
    model = create_model("resnetv2_8", norm=norm, act_layer=act_layer, in_chans=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # away from the initial values, where much is zero
                parameter.add_(0.3 * torch.randn_like(parameter))
    image = torch.randn(1, 1, 8, 8)
    alone = model(image)
    for others in (
        torch.randn(7, 1, 8, 8),
        100 * torch.randn(31, 1, 8, 8),
        torch.zeros(1, 1, 8, 8),
    ):
        together = model(torch.cat([others[:1], image, others[1:]]))[1:2]
        torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


def test_with_batch_norm_it_does():
    model = create_model("resnetv2_8", norm="bn", in_chans=1)
    image, others = torch.randn(1, 1, 8, 8), torch.randn(7, 1, 8, 8)
    together = [model(torch.cat([image, scale * others]))[0] for scale in (1, 100)]
    assert (together[0] - together[1]).abs().max() > 0.1


@pytest.mark.parametrize("norm", ["bn", "ln", "gn4", "ln+pn", "gn4+pn", "none"])
def test_every_parameter_receives_a_gradient(norm):
    model = create_model("resnetv2_8", norm=norm)
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.tensor([0, 1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_weight_standardization_reaches_every_convolution():
    model = create_model("resnetv2_8", norm="ln+ws")
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 9
    images = torch.randn(2, 3, 8, 8)
    expected = model(images)
    with torch.no_grad():  # no shift and scale of a filter matters
        for conv in convolutions:
            conv.weight.mul_(3).add_(0.5)
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-3)


def test_split_points_are_layers_in_order_where_one_tensor_crosses():
    model = create_model("resnetv2_8", norm="ln")
    points = model.split_points()
    assert points == ["layer1.0", "layer2.0", "layer3.0", "norm", "pool", "fc"]
    calls = []
    for name in points:
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, inputs, name=name: calls.append((name, len(inputs)))
        )
    model(torch.randn(1, 3, 8, 8))
    assert calls == [(name, 1) for name in points]


def test_unknown_choices_name_the_nearest():
    assert "resnetv2_50" in MODELS
    with pytest.raises(ValueError, match=r"'resnetv2_5' is unknown.*'resnetv2_8'"):
        create_model("resnetv2_5")
    with pytest.raises(ValueError, match=r"ln\+pm.*ln\+pn"):
        create_model("resnetv2_8", norm="ln+pm")
    with pytest.raises(ValueError, match="16"):
        create_model("resnetv2_8", norm="gn5")
    with pytest.raises(ValueError, match="relu"):
        create_model("resnetv2_8", act_layer="rellu")
