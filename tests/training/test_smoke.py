"""Every recipe takes one small weight update, on any machine."""

import dataclasses
from pathlib import Path

import pytest

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load, recipe_names
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.training.smoke import differences, shallow_splits, smaller, smoke

QUICKSTART = "configs/quickstart.yaml"
B5 = "configs/imagenet/efficientnet_b5_g16_ln_pn_native.yaml"


@pytest.mark.parametrize("path", recipe_names())
def test_every_recipe_smokes(path, monkeypatch):
    # One update is done sooner than a program of several micro-batches is made.
    monkeypatch.setenv("POPTORCH_SIM_TOGETHER", "0")
    config = load(path)
    result = smoke(config)
    # All but what is frozen or left to the warm-up: an update reaches everything.
    assert result.updated == len(list(result.run.model.parameters()))
    assert len(result.run.stages) == len(config.ipu.splits) + 1
    assert type(result.run.optimizer).__name__.lower() == config.optimizer.name.split("_")[0]
    assert (result.run.config.model, result.run.config.optimizer) == (
        config.model,
        config.optimizer,
    )
    for key in ("mixup_alpha", "cutmix_lambda_low", "label_smoothing"):
        assert getattr(result.run.config.training, key) == getattr(config.training, key)


def test_what_is_smaller_is_said(capsys):
    assert main(["train", B5, "--smoke"]) == 0
    printed = capsys.readouterr().out
    for text in (
        "the network: as few blocks as leave some of each kind",
        "ipu.gradient_accumulation: 96 -> 7",
        "ipu.replication_factor: 4 -> 1",
        "data.name: image_folder -> synthetic",
        "data.image_size: 456 -> 32",
        "schedule.warmup_epochs: 5.0 -> 0.0",
        "smoke: passed: loss",
    ):
        assert text in printed, text
    assert not list(Path("runs").glob("efficientnet-b5*"))


@pytest.mark.parametrize(
    ("where", "change"), [("sharded", "4 -> 2"), ("off-chip", "4 -> 1"), ("on-chip", "4 -> 1")]
)
def test_the_optimiser_state_stays_where_it_is(where, change, capsys):
    place = f"ipu.optimizer_state={where}"
    assert main(["train", QUICKSTART, "--smoke", place, "ipu.replication_factor=4"]) == 0
    printed = capsys.readouterr().out
    assert f"ipu.replication_factor: {change}\n" in printed
    assert "ipu.optimizer_state" not in printed
    assert "smoke: passed: loss" in printed


def test_merged_all_reduces_have_two_replicas(capsys):
    keys = ["ipu.merge_all_reduce=true", "ipu.replication_factor=4"]
    assert main(["train", QUICKSTART, "--smoke", *keys]) == 0
    assert "ipu.replication_factor: 4 -> 2\n" in capsys.readouterr().out


def test_stages_begin_in_the_same_groups_of_blocks():
    config = load(B5)  # block2e, block4f, block6e
    assert shallow_splits(config.model, config.ipu.splits) == [
        "blocks.1.0",
        "blocks.3.0",
        "blocks.5.1",
    ]
    # Eight stages of the whole network fall together to seven: four are kept, a power of two.
    config.ipu.splits = [f"blocks.{stage}.0" for stage in range(1, 6)] + [
        "blocks.5.1",
        "blocks.5.2",
    ]
    assert shallow_splits(config.model, config.ipu.splits) == [
        "blocks.1.0",
        "blocks.2.0",
        "blocks.3.0",
    ]
    config.ipu.splits = ["block9a"]
    with pytest.raises(UserError, match=r"'block9a' is no layer at which a stage can begin"):
        smaller(config)


@pytest.mark.parametrize("key", ["image_size", "eval_image_size"])
def test_images_that_are_too_small_do_not_pass(capsys, key):
    assert main(["train", B5, "--smoke", f"data.{key}=31"]) == 2
    error = capsys.readouterr().err
    assert f"data.{key}=31: images of 31x31 are too small for efficientnet_b5" in error
    assert "expected 32 or more pixels, as published 456" in error


def test_digits_stay_digits_and_differences_are_complete():
    config = load(QUICKSTART)
    small = smaller(config)
    assert small.data == config.data
    changed = differences(config, small)[1:]
    assert changed == [
        "ipu.micro_batch_size: 4 -> 2",
        "ipu.replication_factor: 2 -> 1",
        "ipu.gradient_accumulation: 4 -> 3",
        "ipu.inference_device_iterations: 5 -> 1",
        "ipu.check_memory: True -> False",
        "schedule.warmup_epochs: 1.0 -> 0.0",
    ]


def test_a_run_that_updates_nothing_does_not_pass(capsys):
    assert main(["train", QUICKSTART, "--smoke", "optimizer.lr=0"]) == 2
    assert "one update changed no parameter" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_does_not_pass(capsys):
    assert (
        main(["train", QUICKSTART, "--smoke", "optimizer.lr=3e38", "optimizer.weight_decay=100"])
        == 2
    )
    assert "not finite" in capsys.readouterr().err


def test_the_run_itself_is_left_alone():
    config = load(QUICKSTART)
    before = dataclasses.asdict(config)
    smoke(config)
    assert dataclasses.asdict(config) == before
