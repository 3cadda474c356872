"""The device-side program: the arithmetic around the network."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ipu_proxynorm.ipu import Classification


@pytest.fixture
def program():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 5))
    return Classification(network, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), label_smoothing=0.1)


IMAGES = torch.arange(2 * 3 * 4 * 4).mul(5).to(torch.uint8).view(2, 3, 4, 4)
LABELS = torch.tensor([3, 1])


def expected_logits(program):
    scaled = IMAGES.double() / 255
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(3, 1, 1)
    layer = program.model[1]
    return F.linear(((scaled - mean) / std).flatten(1), layer.weight.double(), layer.bias.double())


def test_pixels_are_brought_to_unit_scale(program):
    torch.testing.assert_close(
        program(IMAGES).double(), expected_logits(program), rtol=1e-5, atol=1e-5
    )


def test_loss_and_right_answers(program):
    loss, right = program(IMAGES, LABELS)
    logits = expected_logits(program)
    log_probabilities = logits - logits.exp().sum(1, keepdim=True).log()
    target = 0.9 * F.one_hot(LABELS, 5) + 0.1 / 5
    assert float(loss) == pytest.approx(
        float(-(target * log_probabilities).sum(1).mean()), rel=1e-5
    )
    assert float(right) == int((logits.argmax(1) == LABELS).sum())
    assert (loss.shape, right.shape) == ((), ())


def test_the_state_dict_is_the_networks(program):
    assert list(program.state_dict()) == ["model.1.weight", "model.1.bias"]
