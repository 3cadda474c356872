"""What of a training step depends on how its images are split, and what does not."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import IPUConfig, RunConfig, TrainingConfig
from ipu_proxynorm.data import create_data
from ipu_proxynorm.ipu import Classification, training_options
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import plain_operators
from ipu_proxynorm.run.mixing import draw, mixing_of

NORMS = ["ln+pn", "gn4+pn", "ln", "gn4"]
SEEDS = range(3)
LAYOUTS = [(4, 1, 8), (2, 4, 4), (1, 32, 1)]  # replicas, gradient accumulation, micro-batch
WHOLE = (1, 1, 32)
#: Relative to the largest weight of a tensor, between float32 and float64: rounding alone, and
#: where it puts a pre-activation on the other side of ReLU's kink.
ROUNDING, KINK = 1e-6, 1e-3


def digits(seed):
    """Return 32 scanned digits, uint8 (32, 1, 8, 8), and their labels."""
    data = create_data("digits").train
    chosen = np.random.default_rng(seed).choice(len(data), 32, replace=False)
    samples = [data[int(number)] for number in chosen]
    return torch.stack([image for image, _ in samples]), torch.tensor([x for _, x in samples])


def network(norm, seed=0):
    torch.manual_seed(seed)
    model = create_model("resnetv2_8", norm=norm, in_chans=1, width=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # away from the initial values, where much is zero
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def weights_after_a_step(norm, layout, seed=0, training=None):
    """Weights by name after one training step through the PopTorch API, in float32."""
    replicas, accumulation, micro_batch = layout
    model = network(norm, seed)
    training = training or TrainingConfig(epochs=1)
    ipu = IPUConfig(
        micro_batch_size=micro_batch,
        replication_factor=replicas,
        gradient_accumulation=accumulation,
    )
    program = Classification(model, (0.5,), (0.25,), mixing=mixing_of(training)).train()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(program, training_options(RunConfig(ipu=ipu)), optimizer)
    images, labels = digits(seed)
    executor(images, labels, *draw(training, images.shape, seed, 1, 0))
    executor.copyWeightsToHost()
    return {name: p.detach().clone().double() for name, p in model.named_parameters()}


def weights_in_float64(norm, micro_batch=32, seed=0):
    """The same step in plain PyTorch and float64: gradients of micro-batches, added up."""
    model = network(norm, seed).double()
    images, labels = digits(seed)
    pixels = (images.double() / 255 - 0.5) / 0.25
    for part, right in zip(pixels.split(micro_batch), labels.split(micro_batch)):
        (F.cross_entropy(model(part), right) * (len(part) / len(pixels))).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return {name: p.detach() for name, p in model.named_parameters()}


def distance(one, other):
    """Largest difference of a tensor, relative to the tensor's largest value."""
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max()) for n in one)


@pytest.fixture
def one_after_the_other(monkeypatch):
    """Let the simulator compute micro-batches apart: together they are one batch again."""
    monkeypatch.setenv("POPTORCH_SIM_TOGETHER", "0")


@pytest.mark.parametrize("operators", ["plain", "own backward"])
@pytest.mark.parametrize("norm", NORMS)
def test_in_float64_a_step_is_exact_however_the_batch_is_split(norm, operators):
    for seed in SEEDS:
        steps = []
        for size in (32, 8, 3, 1):
            if operators == "plain":
                with plain_operators():
                    steps.append(weights_in_float64(norm, size, seed))
            else:
                steps.append(weights_in_float64(norm, size, seed))
        for step in steps[1:]:
            assert distance(step, steps[0]) < 1e-13


@pytest.mark.parametrize("norm", ["gn4+pn", "ln"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_in_float32_a_step_differs_by_rounding_only(one_after_the_other, norm, layout):
    distances = []
    for seed in SEEDS:
        step = weights_after_a_step(norm, layout, seed)
        distances.append(distance(step, weights_in_float64(norm, seed=seed)))
    assert max(distances) < KINK
    assert sorted(distances)[1] < ROUNDING


def test_with_batch_norm_it_depends_on_the_split():
    steps = [weights_after_a_step("bn", layout) for layout in (*LAYOUTS[:2], WHOLE)]
    assert distance(steps[2], weights_in_float64("bn")) < 1e-5  # one batch: the plain step
    assert distance(steps[0], steps[2]) > 1e-2
    assert distance(steps[1], steps[2]) > 1e-2


def test_with_mix_up_it_depends_on_the_split_for_every_norm():
    """An image is mixed with one of its own micro-batch."""
    training = TrainingConfig(epochs=1, mixup_alpha=0.2)
    steps = [weights_after_a_step("gn4+pn", x, training=training) for x in (LAYOUTS[1], WHOLE)]
    assert distance(*steps) > 1e-2


def test_the_step_is_large_enough_to_tell():
    before = {name: p.detach().double() for name, p in network("ln+pn").named_parameters()}
    assert distance(weights_in_float64("ln+pn"), before) > 1e-2
