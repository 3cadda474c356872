"""The loop: the same weights and figures as a plain PyTorch loop over the same batches."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Subset

from ipu_proxynorm.config import load
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.run import build
from ipu_proxynorm.run.schedule import learning_rate_factor
from ipu_proxynorm.training import EpochResult, StepResult, Validator, evaluate, fit, host_calls


def small_run(tmp_path, *overrides):
    """A run on 100 training and 30 validation digits: 6 host calls of 16 images an epoch."""
    config = load(
        "configs/quickstart.yaml",
        [f"runs={tmp_path}", "ipu.micro_batch_size=2", "training.epochs=2", *overrides],
    )
    run = build(config)
    data = dataclasses.replace(
        run.data,
        train=Subset(run.data.train, range(100)),
        validation=Subset(run.data.validation, range(30)),
    )
    arithmetic = dataclasses.replace(run.arithmetic, images=100)
    return dataclasses.replace(run, data=data, arithmetic=arithmetic)


def plain_logits(run, images):
    pixels = (images.double() / 255 - run.data.mean[0]) / run.data.std[0]
    return run.model.double()(pixels)


def test_training_equals_a_plain_loop(tmp_path, monkeypatch):
    batches = []
    loader = host_calls.training_loader

    def recording(*arguments):
        for batch in loader(*arguments):
            batches.append([tensor.clone() for tensor in batch])
            yield batch

    class Loader(list):
        def __init__(self, *arguments):
            self.arguments = arguments

        def __iter__(self):
            return recording(*self.arguments)

    monkeypatch.setattr(host_calls, "training_loader", Loader)
    # Smooth: under ReLU, float32 and float64 part at the first value that rounds across zero.
    run = small_run(tmp_path, "model.activation=silu")
    reference = small_run(tmp_path, "model.activation=silu")
    reference.model.double()
    decayed = [p for n, p in reference.model.named_parameters() if p.dim() > 1 or "proxy" in n]
    kept = {id(p) for p in decayed}
    others = [p for p in reference.model.parameters() if id(p) not in kept]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": others}], lr=0.1, momentum=0.9
    )

    results = list(fit(run, RunDirectory.create(run.config)))
    steps = [result for result in results if isinstance(result, StepResult)]
    assert len(steps) == len(batches) == 12
    for number, (step, (images, labels)) in enumerate(zip(steps, batches)):
        rate = 0.1 * learning_rate_factor(run.config.schedule, number / (1437 // 16), 2)
        assert step.learning_rate == pytest.approx(rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        logits = plain_logits(reference, images)
        loss = F.cross_entropy(logits, labels.long())
        assert step.loss == pytest.approx(float(loss), rel=1e-4)
        loss.backward()
        optimizer.step()
    for (name, ours), theirs in zip(run.model.named_parameters(), reference.model.parameters()):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-4, msg=name)


def test_validation_equals_a_plain_pass_over_the_images(tmp_path):
    run = small_run(tmp_path)
    images, labels = zip(*(run.data.validation[i] for i in range(30)))
    evaluation = evaluate(run)
    logits = plain_logits(run, torch.stack(images))
    labels = torch.tensor(labels)
    assert evaluation.images == 30
    assert evaluation.right == int((logits.argmax(1) == labels).sum())
    assert evaluation.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)


def test_a_validator_sees_weights_loaded_since_it_last_ran(tmp_path):
    run, other = small_run(tmp_path), small_run(tmp_path, "seed=1")
    validator = Validator(run)
    before = validator.evaluate()
    run.model.load_state_dict(other.model.state_dict())
    after = validator.evaluate()
    assert after == evaluate(other)
    assert after != before


@pytest.mark.parametrize("norm", ["gn4+pn", "bn"])
def test_what_a_run_leaves_behind(tmp_path, norm):
    run = small_run(tmp_path, f"model.norm={norm}")
    directory = RunDirectory.create(run.config)
    results = list(fit(run, directory))
    directory.close()
    epochs = [result for result in results if isinstance(result, EpochResult)]
    lines = [json.loads(line) for line in (directory.path / "metrics.jsonl").open()]
    assert [line["kind"] for line in lines] == (["train"] * 6 + ["validation"]) * 2
    assert [line["accuracy"] for line in lines if line["kind"] == "validation"] == [
        epoch.validation.accuracy for epoch in epochs
    ]
    first = lines[0]
    assert first["loss"] == pytest.approx(2.3, abs=0.5)  # ln 10 before any training
    assert first["images_per_second"] > 0
    best = max(epoch.validation.accuracy for epoch in epochs)
    assert load_checkpoint(directory.checkpoint("best")).validation_accuracy == best
    last = load_checkpoint(directory.checkpoint("last"))
    assert last.epoch == 2

    again = small_run(tmp_path, f"model.norm={norm}")
    again.model.load_state_dict(last.weights)
    assert evaluate(again) == epochs[-1].validation


def test_device_iterations_group_updates_into_one_call(tmp_path):
    run = small_run(tmp_path, "ipu.device_iterations=2")
    steps = [r for r in fit(run, RunDirectory.create(run.config)) if isinstance(r, StepResult)]
    assert len(steps) == 6  # three calls of 32 images in each of two epochs
    assert all(0 <= step.accuracy <= 1 for step in steps)
    assert steps[0].loss == pytest.approx(2.3, abs=0.5)
