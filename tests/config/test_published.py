"""The recipes of the published configurations are laid out as published."""

import importlib.util
from pathlib import Path

import pytest

from ipu_proxynorm.config import load, recipes

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location(
    "published_results", ROOT / "benchmarks" / "published_results.py"
)
page = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(page)
ROWS = page.published()


def test_there_is_a_recipe_for_each_published_result_and_no_other():
    found = {path for path in recipes(page.RECIPES) if "efficientnet" in path.name}
    assert found == {page.recipe(row) for row in ROWS}
    assert len(ROWS) == 30


@pytest.mark.parametrize("row", ROWS, ids=[row["configuration"] for row in ROWS])
def test_layout_as_published(row):
    config = load(page.recipe(row))
    ipu, model = config.ipu, config.model
    assert (model.name, model.norm) == (f"efficientnet_{row['model'].lower()}", row["norm"])
    assert (model.group_dim, model.expansion) == {"G1": (1, 6), "G16": (16, 4)}[row["variant"]]
    assert config.data.image_size == int(row["image_size"])
    layout = (ipu.micro_batch_size, ipu.replication_factor, ipu.gradient_accumulation)
    names = ("micro_batch_size", "replicas", "gradient_accumulation")
    assert layout == tuple(int(row[name]) for name in names)
    assert ipu.splits == row["splits"].split()
    replicas, stages = row["configuration"].split("_")[-1].split("x")
    assert {int(replicas), int(stages)} == {ipu.replication_factor, len(ipu.splits) + 1}
    proportions = [float(value) for value in row["available_memory_proportion"].split()]
    if len(proportions) > 1:  # of forward and backward pass of each stage
        proportions = proportions[::2]
    assert (ipu.available_memory_proportion or []) == proportions
    assert ipu.precision == "16.32"
    assert layout[0] * layout[1] * layout[2] == 768
    assert (len(ipu.splits) + 1) * ipu.replication_factor == 16


@pytest.mark.parametrize("row", ROWS[::7], ids=[row["configuration"] for row in ROWS[::7]])
def test_optimiser_and_schedule_as_published(row):
    config = load(page.recipe(row))
    optimizer, schedule, training = config.optimizer, config.schedule, config.training
    assert (optimizer.name, optimizer.momentum, optimizer.weight_decay) == ("rmsprop_tf", 0.9, 1e-5)
    assert optimizer.lr == 768 * 2**-14
    assert optimizer.lr_batch == 768
    assert optimizer.alpha == 1 - 768 * 2**-14
    assert (schedule.name, schedule.decay, schedule.decay_epochs) == ("exponential", 0.97, 2.4)
    assert (schedule.warmup_epochs, schedule.interval_epochs) == (5, 2.4)
    assert (training.epochs, training.label_smoothing) == (350, 0.1)
    assert (training.average, training.average_decay) == ("exponential", 0.97)
    strength = {"B0": 1, "B1": 0.95, "B2": 0.9, "B3": 0.9, "B4": 0.85, "B5": 0.8}[row["model"]]
    assert training.mixup_alpha == (0.1 if row["model"] in ("B0", "B1", "B2") else 0.2)
    if strength == 1:
        assert training.cutmix_lambda_low == 1
    else:
        assert training.cutmix_disable_prob == pytest.approx(1.55 * strength - 0.96)


@pytest.mark.parametrize("row", ROWS, ids=[row["configuration"] for row in ROWS])
def test_each_has_a_published_variant_by_composition(row, tmp_path):
    file = page.recipe(row)
    variant = tmp_path / "variant.yaml"
    variant.write_text(f"defaults: [{file}, {file.parent / 'base' / 'published.yaml'}]\n")
    own, published = load(file), load(variant)
    model = published.model
    assert (model.padding, model.proxy_method, model.proxy_scale) == (
        ("same", "sampled", "published")
    )
    assert published.training.cutmix_boxes == "clipped"
    assert (model.name, model.norm, published.ipu) == (own.model.name, own.model.norm, own.ipu)


def test_the_page_shows_the_recipes_and_figures_as_they_are():
    assert page.table() in page.PAGE.read_text(encoding="utf-8")
    for link in ("published_results.csv", "../configs/imagenet/efficientnet_b0_g1_gn_native.yaml"):
        assert (page.PAGE.parent / link).is_file()
