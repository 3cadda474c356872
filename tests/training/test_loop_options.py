"""What a run may ask of the loop: validation, averages, float16, fine-tuning; its end by NaN."""

import dataclasses
import json
import math

import pytest
import torch
from torch.utils.data import Subset

from ipu_proxynorm.config import load
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.run import build
from ipu_proxynorm.training import EpochResult, StepResult, evaluate, fit
from ipu_proxynorm.training.diagnosis import Diverged

CALLS = 3  # of 16 images an epoch


def small_run(tmp_path, *overrides):
    """A run on 50 training and 10 validation digits, on one IPU."""
    config = load(
        "configs/quickstart.yaml",
        [
            f"runs={tmp_path}",
            "model.width=4",
            "model.norm=ln",
            "ipu.splits=[]",
            "ipu.micro_batch_size=2",
            "training.epochs=2",
            *overrides,
        ],
    )
    run = build(config)
    data = dataclasses.replace(
        run.data,
        train=Subset(run.data.train, range(50)),
        validation=Subset(run.data.validation, range(10)),
    )
    arithmetic = dataclasses.replace(run.arithmetic, images=50)
    return dataclasses.replace(run, data=data, arithmetic=arithmetic)


def train(tmp_path, *overrides, run=None):
    """Train; return the folder and the results of steps and of epochs."""
    run = run or small_run(tmp_path, *overrides)
    directory = RunDirectory.create(run.config)
    results = list(fit(run, directory))
    directory.close()
    steps = [result for result in results if isinstance(result, StepResult)]
    return directory, steps, [result for result in results if isinstance(result, EpochResult)]


def kinds(directory):
    lines = [json.loads(line) for line in (directory.path / "metrics.jsonl").open()]
    return [(line["kind"], line["epoch"]) for line in lines if line["kind"] != "train"]


@pytest.mark.parametrize(
    ("overrides", "validated"),
    [
        (["training.validate=never"], []),
        (["training.validate=end"], [3]),
        (["training.validate_every=2"], [2, 3]),
    ],
)
def test_validation_never_at_the_end_or_every_few_epochs(tmp_path, overrides, validated):
    directory, steps, epochs = train(tmp_path, "training.epochs=3", *overrides)
    assert kinds(directory) == [("validation", epoch) for epoch in validated]
    assert [e.epoch for e in epochs if e.validation is not None] == validated
    assert len(steps) == 3 * CALLS
    assert directory.checkpoint("last").exists()
    assert directory.checkpoint("best").exists() == bool(validated)


@pytest.mark.parametrize(
    ("overrides", "shares"),
    [
        (["training.average=mean"], [1 / 3, 1 / 3, 1 / 3]),
        (["training.average=mean", "training.average_from_epoch=2"], [0, 1 / 2, 1 / 2]),
        (["training.average=exponential", "training.average_decay=0.6"], [0.36, 0.24, 0.4]),
    ],
)
def test_the_average_is_validated_beside_the_weights_and_changes_nothing(
    tmp_path, overrides, shares
):
    directory, _, epochs = train(
        tmp_path, "training.epochs=3", "training.keep_checkpoints=3", *overrides
    )
    kept = [load_checkpoint(directory.checkpoint(n)) for n in ("last-2", "last-1", "last")]
    expected = {
        name: sum(share * c.weights[name].double() for share, c in zip(shares, kept))
        for name, tensor in kept[0].weights.items()
        if tensor.is_floating_point()
    }
    values = kept[-1].state.extra["average"]["values"]
    for name, tensor in expected.items():
        torch.testing.assert_close(values[name], tensor, rtol=1e-12, atol=1e-12)

    averaged = small_run(tmp_path)
    averaged.model.load_state_dict({**kept[-1].weights, **expected})
    assert evaluate(averaged) == epochs[-1].average
    assert epochs[-1].average != epochs[-1].validation
    assert kinds(directory)[-2:] == [("validation", 3), ("average", 3)]

    if shares[0] == 0:  # once is enough
        plain, _, _ = train(tmp_path / "plain", "training.epochs=3")
        for name, tensor in load_checkpoint(plain.checkpoint("last")).weights.items():
            assert torch.equal(tensor, kept[-1].weights[name]), name


def test_an_average_of_every_host_call_survives_a_stop(tmp_path):
    overrides = ["training.average=exponential", "training.weights_every=2"]
    whole, _, _ = train(tmp_path / "whole", *overrides)
    overrides.append("training.checkpoint_every=1")
    run = small_run(tmp_path / "parts", *overrides)
    directory = RunDirectory.create(run.config)
    results = fit(run, directory)
    for _ in range(4 + 1):  # an epoch of three steps, and one step of the next
        next(results)
    results.close()
    directory.close()
    again = RunDirectory.reopen(run.config)
    last = load_checkpoint(again.checkpoint("last"))
    list(fit(small_run(tmp_path / "parts", *overrides), again, last))
    again.close()
    ours, theirs = (
        load_checkpoint(d.checkpoint("last")).state.extra["average"] for d in (again, whole)
    )
    assert ours["readings"] == theirs["readings"] == CALLS
    for name, tensor in ours["values"].items():
        assert torch.equal(tensor, theirs["values"][name])


def test_a_run_in_float16_follows_float32(tmp_path):
    common = ["training.mixup_alpha=0.2", "optimizer.loss_scaling=128", "optimizer.lr=0.05"]
    _, exact, _ = train(tmp_path / "exact", *common)
    for precision, dtype in (("16.32", torch.float32), ("16.16", torch.float16)):
        asked = f"ipu.precision={precision}"
        directory, steps, epochs = train(tmp_path / precision, asked, *common)
        assert [s.loss for s in steps] == pytest.approx([s.loss for s in exact], abs=0.05)
        assert [s.loss for s in steps] != [s.loss for s in exact]
        weights = load_checkpoint(directory.checkpoint("last")).weights
        assert {t.dtype for t in weights.values() if t.is_floating_point()} == {dtype}
        again = small_run(tmp_path, asked)
        again.model.load_state_dict(weights)
        assert evaluate(again) == epochs[-1].validation


@pytest.mark.parametrize("precision", ["16.16", "16.32"])
def test_the_loss_scaling_adjusts_itself(precision, tmp_path):
    _, steps, _ = train(
        tmp_path,
        f"ipu.precision={precision}",
        "optimizer.auto_loss_scaling=true",
        "optimizer.accumulation=float16",
        "optimizer.lr=0.01",
    )
    assert all(math.isfinite(step.loss) for step in steps)


def test_the_loss_scaling_doubles(tmp_path):
    _, steps, _ = train(
        tmp_path / "doubling", "optimizer.loss_scaling=8", "optimizer.initial_loss_scaling=2"
    )
    assert [step.loss_scaling for step in steps] == [2, 2, 4, 4, 8, 8]


def test_fine_tuning_the_last_layers_at_another_resolution(tmp_path):
    half, _, _ = train(tmp_path / "half", "data.image_size=8", "training.average=mean")
    path = half.checkpoint("last")
    overrides = [
        "name=full",
        "data.image_size=12",
        f"training.init_from={path}",
        "training.trainable=[layer3, norm, fc]",
    ]
    run = small_run(tmp_path, *overrides)
    assert run.origin == f"averaged weights of {path} (epoch 2)"
    start = {
        name: tensor.to(run.model.state_dict()[name].dtype)
        for name, tensor in load_checkpoint(path).state.extra["average"]["values"].items()
    }
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, start[name]), name
    directory, _, epochs = train(tmp_path, run=run)
    assert epochs[-1].validation.images == 10
    weights = load_checkpoint(directory.checkpoint("last")).weights
    moved = {name for name, tensor in weights.items() if not torch.equal(tensor, start[name])}
    trainable = {
        n for n in dict(run.model.named_parameters()) if n.startswith(("layer3", "norm", "fc"))
    }
    assert moved == trainable
    with pytest.raises(UserError, match=r"another network.*model.norm=ln instead of bn"):
        small_run(tmp_path, f"training.init_from={path}", "model.norm=bn")


def test_starting_weights_that_are_not_there(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        small_run(tmp_path, "training.init_from=runs/none/last.pt")


def diverging(tmp_path, *overrides, change=None):
    """Train a run that diverges; return the error, the folder and the steps before."""
    run = small_run(tmp_path, *overrides)
    if change is not None:
        change(run.model)
    directory = RunDirectory.create(run.config)
    steps = []
    with pytest.raises(Diverged) as caught:
        steps.extend(fit(run, directory))
    directory.close()
    return str(caught.value), directory, steps


def test_a_forward_pass_that_overflows_names_step_layer_and_remedy(tmp_path):
    def grow(model):
        with torch.no_grad():
            model.layer2[0].conv1.weight.mul_(1e7)

    text, directory, _ = diverging(tmp_path, "ipu.precision=16.32", "model.norm=ln", change=grow)
    assert text.startswith("the loss is nan at step 1 (epoch 1): in a second forward pass")
    assert "right before it, layer 'layer2.0.conv1' is the first whose output overflows" in text
    assert "float16 (in micro-batch 0; the layer before reaches" in text
    assert text.endswith(
        "try a lower optimizer.lr (it is 0.1), a longer schedule.warmup_epochs (it is 1) or "
        "ipu.precision=32.32"
    )
    assert not directory.checkpoint("last").exists()


def test_gradients_that_overflow_are_told_from_activations(tmp_path):
    overrides = ["ipu.precision=16.16", "optimizer.loss_scaling=1e8", "schedule.warmup_epochs=0"]
    text, _, _ = diverging(tmp_path, *overrides)
    assert text.startswith("the loss is nan at step 2 (epoch 1): in a second forward pass with the")
    assert "weights 1 host calls before it" in text
    assert "no layer overflows float16" in text
    assert "try a lower optimizer.loss_scaling (it is 1e+08)" in text
    text, _, _ = diverging(tmp_path / "every", *overrides, "training.weights_every=1")
    assert "the loss is finite at step 1, but " in text
    assert "tensors of weights are not after it" in text


def test_the_checkpoint_before_stays_good(tmp_path):
    # The learning rate is harmless in the first epoch, and far too high afterwards. The schedule
    # counts epochs of all 1,437 digits: 89 host calls.
    text, directory, _ = diverging(
        tmp_path,
        "schedule.name=step",
        "schedule.step_epochs=[0.03]",
        "schedule.decay=1e30",
        "schedule.warmup_epochs=0",
        "training.epochs=3",
    )
    assert "epoch 2" in text
    weights = load_checkpoint(directory.checkpoint("last")).weights
    assert all(bool(torch.isfinite(t).all()) for t in weights.values() if t.is_floating_point())
    losses = [json.loads(line)["loss"] for line in (directory.path / "metrics.jsonl").open()]
    assert all(math.isfinite(loss) for loss in losses)
