"""Augmentation: what it does to pixels, and what it is a function of."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ipu_proxynorm.data.augment import (
    Augmentation,
    centre_crop,
    crop_and_flip,
    padded_crop,
    resized_crop_and_flip,
)


@pytest.mark.parametrize("top", [0, 2, 4, 8])
@pytest.mark.parametrize("left", [0, 3, 4, 7])
def test_a_padded_crop_is_what_padding_and_cropping_give(top, left):
    image = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    padded = F.pad(image, (4, 4, 4, 4))
    expected = padded[:, top : top + 32, left : left + 32]
    assert torch.equal(padded_crop(image, top, left, 4), expected)


def test_all_shifts_and_both_directions_occur_about_equally_often():
    # One bright pixel in the middle: where it goes says how the image was shifted and mirrored.
    image = torch.zeros((1, 32, 32), dtype=torch.uint8)
    image[0, 16, 20] = 255
    columns, rows = np.zeros(32), np.zeros(32)
    random = np.random.default_rng(0)
    for _ in range(3000):
        (where,) = crop_and_flip(image, 32, random)[0].nonzero()
        rows[int(where[0])] += 1
        columns[int(where[1])] += 1
    # Nine rows; nine columns around 20 and nine around its mirror image, 11, of which 2 coincide.
    assert set(rows.nonzero()[0]) == set(range(12, 21))
    assert set(columns.nonzero()[0]) == set(range(7, 25))
    assert np.abs(rows[12:21] / 3000 - 1 / 9).max() < 0.03
    assert abs(columns[16:].sum() / 3000 - 0.5) < 0.04


def test_a_resized_crop_shows_a_part_of_the_image():
    # Brightness grows to the right: a crop's range is that of its columns.
    image = torch.arange(200, dtype=torch.uint8).expand(3, 100, 200)
    random = np.random.default_rng(0)
    widths, mirrored = [], 0
    for _ in range(200):
        crop = resized_crop_and_flip(image, 28, random)
        assert (crop.dtype, tuple(crop.shape)) == (torch.uint8, (3, 28, 28))
        row = crop[0, 14].int()
        mirrored += int(row[0] > row[-1])
        widths.append(abs(int(row[-1]) - int(row[0])))
    assert min(widths) < 60
    assert max(widths) > 90
    assert 70 < mirrored < 130


@pytest.mark.parametrize("name", ["crop", "resized"])
def test_a_sample_depends_on_seed_epoch_and_number_only(name):
    image = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    augment = Augmentation(name, 32, seed=2**62 + 1)
    first = augment(image, 3, 70000)
    torch.manual_seed(99)
    np.random.seed(99)
    state = torch.get_rng_state()
    assert torch.equal(augment(image, 3, 70000), first)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (
        [Augmentation(name, 32, seed=s)(image, 3, 70000) for s in range(8)],
        [augment(image, e, 70000) for e in range(4, 12)],
        [augment(image, 3, i) for i in range(8)],
    ):
        assert sum(torch.equal(sample, first) for sample in other) < 4
        assert any(not torch.equal(a, b) for a, b in zip(other, other[1:]))


def test_no_augmentation_is_the_image():
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(Augmentation("none", 8)(image, 1, 1), image)


def test_a_centre_crop_keeps_the_middle_of_the_shorter_side():
    image = torch.arange(60, dtype=torch.uint8).expand(1, 30, 60)
    assert centre_crop(image, 30)[0, 0].tolist() == list(range(15, 45))
    assert tuple(centre_crop(image, 20).shape) == (1, 20, 20)
