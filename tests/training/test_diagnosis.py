"""Which layer overflowed first, provoked in known places."""

import dataclasses

import pytest
import torch

from ipu_proxynorm.config import load
from ipu_proxynorm.run.run import build
from ipu_proxynorm.training.diagnosis import advice, find_overflow, not_finite


def run_of(*overrides):
    config = load(
        "configs/quickstart.yaml",
        ["model.width=4", "ipu.micro_batch_size=2", *overrides],
    )
    return build(config)


def inputs_of(run):
    images = torch.stack([run.data.train[i][0] for i in range(16)])
    labels = torch.tensor([int(run.data.train[i][1]) for i in range(16)])
    return [images, labels]


def weights_of(run, scale=1.0, of="layer1.0.conv1.weight"):
    weights = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    weights[of] *= scale
    return weights


def test_the_first_layer_that_overflows_is_named_and_weights_come_back():
    run = run_of("ipu.precision=16.32")
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    finding = find_overflow(run, weights_of(run, 1e6), inputs_of(run))
    assert (finding.overflowed, finding.layer, finding.micro_batch) == (
        True, "layer1.0.conv1", 0,
    )  # fmt: skip
    assert 0 < finding.largest < 65504
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_only_the_micro_batch_that_overflows_counts():
    run = run_of("ipu.precision=16.32", "model.norm=none", "model.name=resnetv2_8")
    images, labels = inputs_of(run)
    images[:10] = int(run.data.mean[0] * 255)  # almost nothing in the first five micro-batches
    weights = weights_of(run, 3e4, of="stem.weight")
    finding = find_overflow(run, weights, [images, labels])
    assert finding.overflowed
    assert finding.micro_batch == 5


def test_float32_does_not_overflow_there_and_the_largest_output_is_given():
    run = run_of()
    weights = weights_of(run, 1e6)
    finding = find_overflow(run, weights, inputs_of(run))
    assert (finding.overflowed, finding.layer) == (False, "layer1.0.conv1")
    run.model.load_state_dict(weights)
    outputs = []
    run.model.layer1[0].conv1.register_forward_hook(lambda m, i, o: outputs.append(o.abs().max()))
    run.program(*inputs_of(run))
    assert finding.largest == pytest.approx(float(outputs[0]), rel=1e-4)


def test_mixed_images_are_watched_too():
    run = run_of("ipu.precision=16.16", "training.mixup_alpha=0.3")
    numbers = torch.zeros(16, 5)
    numbers[:, 0] = 0.75
    finding = find_overflow(run, weights_of(run, 1e4), [*inputs_of(run), numbers])
    assert finding.layer == "layer1.0.conv1"


def test_tensors_that_are_not_finite():
    weights = {
        "a": torch.ones(2),
        "b": torch.tensor([1.0, float("nan")]),
        "c": torch.tensor([float("inf")]).half(),
        "d": torch.tensor(3),
    }
    assert not_finite(weights) == ["b", "c"]


def test_advice_fits_the_precision():
    run = run_of("optimizer.loss_scaling=64")
    assert "loss_scaling" not in advice(run.config, gradients=True)
    config = dataclasses.replace(
        run.config, ipu=dataclasses.replace(run.config.ipu, precision="16.16")
    )
    assert advice(config, gradients=True).startswith(
        "try a lower optimizer.loss_scaling (it is 64), a lower optimizer.lr (it is 0.1)"
    )
    assert advice(config, gradients=True).endswith("ipu.precision=16.32 or ipu.precision=32.32")
    assert "loss_scaling" not in advice(config, gradients=False)
