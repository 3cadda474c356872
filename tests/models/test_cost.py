"""Parameters and multiply-adds: the docs' table, the networks, and the published figures."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from ipu_proxynorm.models import MODELS, cost, create_model, multiply_adds

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("model_costs", ROOT / "benchmarks" / "model_costs.py")
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)
ROWS = page.published()
LINES = {
    line.split("|")[1].strip(): line
    for line in page.PAGE.read_text(encoding="utf-8")
    .partition(page.HEADER)[2]
    .partition("\n\n")[0]
    .splitlines()
    if line
}


def of(source):
    return [row for row in ROWS if row["source"] == source]


def in_table(name):
    """Return parameters, 1e6, and multiply-adds, 1e9, as the page has them."""
    _, _, _, parameters, operations, *_ = LINES[name].split("|")
    return int(parameters.replace(",", "")) / 1e6, float(operations)


def test_the_page_has_a_line_for_every_network():
    expected = [f"{name}, G16" if options else name for name, options in page.networks()]
    assert list(LINES) == expected


# One of each family; benchmarks/model_costs.py counts all.
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnetv2_20", {}),
        ("resnetv2_50", {}),
        ("resnet20", {}),
        ("resnet50", {}),
        ("resnextv2_50_32x4d", {}),
        ("resnext50_32x4d", {}),
        ("efficientnet_b0", {}),
        ("efficientnet_b2", page.G16),
        ("random_50", {}),
    ],
)
def test_lines_are_as_counted(name, options):
    assert page.line(name, options) == LINES[f"{name}, G16" if options else name]


@pytest.mark.parametrize("row", of("torchvision"), ids=lambda row: row["network"])
def test_torchvision_s_figures(row):
    meta = torchvision.models.get_model_weights(row["network"])["IMAGENET1K_V1"].meta
    assert f"{meta['num_params'] / 1e6:.6f}" == row["parameters_millions"]
    assert f"{meta['_ops']:.3f}" == row["multiply_adds_billions"]
    name, resolution = row["network"], int(row["resolution"])
    if resolution == MODELS[name].resolution:
        parameters, operations = in_table(name)
    else:
        found = cost(name, resolution=resolution)
        parameters, operations = found.parameters / 1e6, found.multiply_adds / 1e9
    assert f"{parameters:.6f}" == row["parameters_millions"]
    assert f"{operations:.3f}" == row["multiply_adds_billions"]


@pytest.mark.parametrize("row", of("timm"), ids=lambda row: row["network"])
def test_timm_s_figures(row):
    parameters, operations = in_table(row["network"])
    assert f"{parameters:.2f}" == row["parameters_millions"]
    # Its count includes norms.
    assert 1.003 < float(row["multiply_adds_billions"]) / operations < 1.006


@pytest.mark.parametrize("row", of("tan"), ids=lambda row: row["network"])
def test_figures_of_the_paper_of_efficientnet(row):
    parameters, operations = in_table(row["network"])
    published = "9.1" if row["network"] == "efficientnet_b2" else row["parameters_millions"]  # 9.2
    assert f"{parameters:.{len(published.partition('.')[2])}f}" == published
    assert operations == pytest.approx(float(row["multiply_adds_billions"]), rel=0.05)


@pytest.mark.parametrize("row", of("he"), ids=lambda row: row["network"])
def test_figures_of_the_paper_of_resnet(row):
    with torch.device("meta"):
        model = create_model(row["network"], "bn", 10)
    # Shortcuts of its 32x32 networks have no parameters.
    own = sum(p.numel() for name, p in model.named_parameters() if "downsample" not in name)
    published = row["parameters_millions"]
    digits = len(published.partition(".")[2])
    assert f"{own / 1e6:.{digits}f}" == published
    assert sum(p.numel() for p in model.parameters()) - own == 2752


def test_multiply_adds_by_hand():
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).train()
    convolution = 8 * 4 * 3 * (2 * 3 * 3)  # outputs of 8x6 images, each of 2 channels' 3x3 window
    assert multiply_adds(model, torch.randn(3, 4, 8, 6)) == 3 * (convolution + 8 * 5)
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_counting_leaves_every_modules_mode():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4).eval(), nn.Flatten()).train()
    before = [module.training for module in model.modules()]
    statistics = model[1].running_mean.clone()
    multiply_adds(model, torch.randn(2, 3, 5, 5))
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[1].running_mean, statistics)
