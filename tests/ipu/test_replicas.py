"""A batch-independent network trains alike however a batch is split: the reason to exist."""

import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import IPUConfig, RunConfig
from ipu_proxynorm.ipu import Classification, training_options
from ipu_proxynorm.models import create_model

LAYOUTS = [(4, 1, 2), (2, 2, 2), (1, 1, 8)]  # replicas, gradient accumulation, micro-batch
IMAGES = torch.randint(0, 256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(1)).to(
    torch.uint8
)
LABELS = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7])


def network(norm):
    torch.manual_seed(3)
    model = create_model("resnetv2_8", norm=norm, in_chans=1, width=8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:  # away from the initial values, where much is zero
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def weights_after_a_step(norm, layout):
    """Weights by name after one training step through the PopTorch API."""
    replicas, accumulation, micro_batch = layout
    model = network(norm)
    config = IPUConfig(
        micro_batch_size=micro_batch,
        replication_factor=replicas,
        gradient_accumulation=accumulation,
    )
    program = Classification(model, (0.5,), (0.25,)).train()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)
    executor = poptorch.trainingModel(program, training_options(RunConfig(ipu=config)), optimizer)
    executor(IMAGES, LABELS)
    executor.copyWeightsToHost()
    return {name: p.detach().clone().double() for name, p in model.named_parameters()}


def plain_float64(norm):
    """The same step in plain PyTorch: the whole batch at once, in float64."""
    model = network(norm).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pixels = (IMAGES.double() / 255 - 0.5) / 0.25
    F.cross_entropy(model(pixels), LABELS).backward()
    optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def distance(one, other):
    """Largest difference of a tensor, relative to the tensor's largest change or value."""
    return max(float((one[n] - other[n]).abs().max() / other[n].abs().max()) for n in one)


@pytest.mark.parametrize("norm", ["ln+pn", "gn4+pn", "ln", "gn4"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_step_is_the_same_however_the_batch_is_split(norm, layout):
    assert distance(weights_after_a_step(norm, layout), plain_float64(norm)) < 1e-6


def test_with_batch_norm_it_is_not():
    steps = [weights_after_a_step("bn", layout) for layout in LAYOUTS]
    assert distance(steps[2], plain_float64("bn")) < 1e-5  # one batch: the plain step
    assert distance(steps[0], steps[2]) > 1e-3
    assert distance(steps[1], steps[2]) > 1e-3


def test_the_step_is_large_enough_to_tell():
    before = {name: p.detach().double() for name, p in network("ln+pn").named_parameters()}
    assert distance(plain_float64("ln+pn"), before) > 1e-2
