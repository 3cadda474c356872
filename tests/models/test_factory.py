"""Networks by name: options, defaults, and the refusal of what a network does not have."""

import pytest
import torch

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models import MODELS, check_resolution, create_model, default_resolution
from ipu_proxynorm.models.efficientnet import group_count, round_channels


def test_every_published_network_has_its_name():
    names = [
        f"{kind}{depth}" for kind in ("resnet", "resnetv2_") for depth in (18, 34, 50, 101, 152)
    ]
    names += [
        f"{kind}{depth}" for kind in ("resnet", "resnetv2_") for depth in (20, 32, 44, 56, 110)
    ]
    names += ["resnext50_32x4d", "resnext101_32x4d", "resnextv2_50_32x4d", "resnextv2_101_32x4d"]
    names += [f"efficientnet_b{number}" for number in range(8)]
    assert set(names) <= set(MODELS)


def test_resolutions_as_published():
    sizes = [default_resolution(f"efficientnet_b{number}") for number in range(8)]
    assert sizes == [224, 240, 260, 300, 380, 456, 528, 600]
    halves = [default_resolution(f"efficientnet_b{number}", half=True) for number in range(6)]
    assert halves == [160, 176, 192, 204, 252, 328]
    assert default_resolution("resnet50") == 224
    assert default_resolution("resnetv2_110") == 32


@pytest.mark.parametrize(
    ("call", "parts"),
    [
        (lambda: create_model("resnet49"), ["nearest is 'resnet50'", "resnet44, resnet56"]),
        (lambda: create_model("resnetv2_21"), ["nearest is 'resnetv2_20'", "resnetv2_32"]),
        (lambda: create_model("efficientnet_b8"), ["nearest is 'efficientnet_b7'"]),
        (lambda: create_model("resnext50"), ["nearest is 'resnext50_32x4d'"]),
        (lambda: create_model("resnet"), ["'resnet' is unknown: expected one of", "resnet50"]),
        (
            lambda: create_model("resnet50", group_dim=16),
            ["group_dim=16: resnet50 has no", "width"],
        ),
        (
            lambda: create_model("efficientnet_b0", zero_init_last=True),
            ["zero_init_last=True: efficientnet_b0 has no such option", "group_dim, expansion"],
        ),
        (
            lambda: create_model("efficientnet_b0", group_dim=12),
            ["group_dim=12", "1, 2, 4, 8, 16, 32, 64", "nearest: 8"],
        ),
        (lambda: create_model("efficientnet_b0", expansion=0), ["expansion=0", "6 and 4"]),
        (lambda: create_model("resnext50_32x4d", width=8), ["width=8", "16 or more"]),
        (
            lambda: default_resolution("efficientnet_b6", half=True),
            ["efficientnet_b6 has no published half resolution", "efficientnet_b5 328", "528"],
        ),
        (lambda: check_resolution("efficientnet_b0", 31), ["31x31", "32 or more", "224"]),
        (lambda: check_resolution("resnet20", 3), ["3x3", "4 or more"]),
    ],
)
def test_wrong_choices_name_what_is_valid(call, parts):
    with pytest.raises(UserError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_smallest_images_pass():
    for name in ("efficientnet_b0", "resnet50"):
        check_resolution(name, 32)
    check_resolution("resnetv2_8", 8)


def test_channels_of_a_group():
    # Depthwise; 16 where they divide; otherwise the next more that divide, or all.
    assert [group_count(96, dim) for dim in (1, 16)] == [96, 6]
    assert [40 // group_count(40, 16), 56 // group_count(56, 16), group_count(8, 16)] == [20, 28, 1]


def test_channels_are_rounded_to_eights_but_not_down_by_more_than_a_tenth():
    # Published channels of EfficientNet-B2's and B3's stem and stages.
    assert [round_channels(1.1 * c) for c in (32, 16, 24, 40, 80, 112, 192, 320, 1280)] == [
        32, 16, 24, 48, 88, 120, 208, 352, 1408,
    ]  # fmt: skip
    assert [round_channels(1.2 * c) for c in (32, 16, 24, 40, 80, 112, 192, 320, 1280)] == [
        40, 24, 32, 48, 96, 136, 232, 384, 1536,
    ]  # fmt: skip
    assert round_channels(11) == 16  # 8 would be less than 90%


def test_a_network_s_own_choices():
    resnet, efficientnet = create_model("resnet8"), create_model("efficientnet_b0")
    assert resnet.bn1.activation.name == "relu"
    assert resnet.bn1.eps == 1e-5
    assert efficientnet.bn1.activation.name == "silu"
    assert efficientnet.bn1.eps == 1e-3
    assert create_model("resnet8", norm_eps=0.01).bn1.eps == 0.01
    torch.testing.assert_close(
        [
            block.drop_path.rate
            for stage in efficientnet.blocks
            for block in stage
            if block.residual
        ],
        [0.2 * number / 16 for number in (2, 4, 6, 7, 9, 10, 12, 13, 14)],
    )


@pytest.mark.parametrize("name", ["resnet50", "resnetv2_110", "efficientnet_b7", "random_200"])
def test_shallow_networks_are_of_the_same_blocks(name):
    with torch.device("meta"):  # without values: random_200 has 1.9 billion weights
        whole, few = (create_model(name, "ln", shallow=shallow) for shallow in (False, True))
    kinds = [{type(module) for module in model.modules()} for model in (whole, few)]
    assert kinds[0] == kinds[1]
    assert len(list(few.modules())) < 180
