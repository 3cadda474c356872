"""Mix-up and cut-mix on the device, against loops over the images in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.ipu import Classification, Mixing

CLASSES, SIZE = 3, (4, 6)


def network():
    return nn.Sequential(nn.Flatten(), nn.Linear(2 * SIZE[0] * SIZE[1], CLASSES))


NUMBERS = torch.tensor(
    [
        [0.75, 0, 2, 1, 4],
        [0.5, 1, 1, 0, 6],  # an empty box
        [1.0, 0, 4, 0, 6],  # the whole image
        [0.625, 3, 4, 5, 6],
    ]
)


def plain(images, labels, mixing):
    """Images and targets, image by image and pixel by pixel."""
    numbers, size = NUMBERS.double().numpy(), len(images)
    one_hot = np.eye(CLASSES)[labels]
    if mixing.mixup:
        mixed, targets = np.empty_like(images), np.empty_like(one_hot)
        for i in range(size):
            own, other = numbers[i, 0], (i - 1) % size
            mixed[i] = own * images[i] + (1 - own) * images[other]
            targets[i] = own * one_hot[i] + (1 - own) * one_hot[other]
        images, one_hot = mixed, targets
    if mixing.cutmix:
        pasted, targets = images.copy(), np.empty_like(one_hot)
        for i in range(size):
            other = (i - (2 if mixing.mixup and size > 2 else 1)) % size
            top, bottom, left, right = (int(n) for n in numbers[i, 1:])
            pixels = 0
            for row in range(top, bottom):
                for column in range(left, right):
                    pasted[i, :, row, column] = images[other, :, row, column]
                    pixels += 1
            share = pixels / (SIZE[0] * SIZE[1])
            targets[i] = (1 - share) * one_hot[i] + share * one_hot[other]
        images, one_hot = pasted, targets
    return images, one_hot


@pytest.mark.parametrize("smoothing", [0, 0.1])
@pytest.mark.parametrize(
    "mixing",
    [Mixing(mixup=True), Mixing(cutmix=True), Mixing(mixup=True, cutmix=True)],
    ids=["mixup", "cutmix", "both"],
)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_loss_of_mixed_images(mixing, smoothing, size):
    model = network()
    program = Classification(model, (0.4, 0.5), (0.2, 0.3), smoothing, mixing)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.5)
    layer = [parameter.detach().double().numpy().copy() for parameter in model.parameters()]
    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    executor = poptorch.trainingModel(program, options, optimizer)

    images = torch.randint(256, (2 * size, 2, *SIZE), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 2, 1, 2, 2, 0, 1])[: 2 * size]
    loss, right = executor(images, labels, torch.cat([NUMBERS[:size], NUMBERS[:size]]))

    mean = np.array([0.4, 0.5]).reshape(2, 1, 1)
    std = np.array([0.2, 0.3]).reshape(2, 1, 1)
    losses, rights = [], []
    for micro_batch in (slice(0, size), slice(size, 2 * size)):
        pixels = (images[micro_batch].double().numpy() / 255 - mean) / std
        mixed, targets = plain(pixels, labels[micro_batch].numpy(), mixing)
        logits = mixed.reshape(size, -1) @ layer[0].T + layer[1]
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        targets = (1 - smoothing) * targets + smoothing / CLASSES
        losses.append(-(targets * log_p).sum(1).mean())
        rights.append((logits.argmax(1) == labels[micro_batch].numpy()).sum())
    # The last micro-batch's figures return by default.
    assert float(loss) == pytest.approx(losses[-1], rel=1e-5)
    assert float(right) == rights[-1]


def test_every_partner_is_another_image():
    program = Classification(network(), (0.5, 0.5), (1, 1), 0, Mixing(mixup=True, cutmix=True))
    from ipu_proxynorm.ipu.mixing import mixed_labels

    labels = torch.arange(4)
    parts = mixed_labels(labels, NUMBERS, program.mixing, SIZE[0] * SIZE[1])
    met = torch.stack([label for label, _ in parts])  # (4 parts, N)
    assert all(sorted(column.tolist()) == [0, 1, 2, 3] for column in met.T)
    shares = torch.stack([share for _, share in parts]).sum(0)
    torch.testing.assert_close(shares, torch.ones(4))


def test_without_numbers_the_program_mixes_nothing():
    torch.manual_seed(0)
    mixing = Classification(network(), (0.5, 0.5), (1, 1), 0, Mixing(mixup=True))
    plain_program = Classification(mixing.model, (0.5, 0.5), (1, 1))
    images, labels = torch.zeros(4, 2, *SIZE, dtype=torch.uint8), torch.tensor([0, 1, 2, 0])
    assert torch.equal(mixing(images, labels)[0], plain_program(images, labels)[0])
