"""The numbers that the host draws for mix-up and cut-mix."""

import numpy as np
import pytest
import torch
from scipy import stats

from ipu_proxynorm.config import TrainingConfig
from ipu_proxynorm.data import Share
from ipu_proxynorm.run.mixing import draw

SHAPE = (4000, 3, 32, 48)


def numbers(seed=0, epoch=1, call=0, **values):
    (drawn,) = draw(TrainingConfig(epochs=1, **values), SHAPE, seed, epoch, call)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (4000, 5)
    return drawn.double().numpy()


def test_nothing_is_drawn_where_nothing_is_mixed():
    assert draw(TrainingConfig(epochs=1), SHAPE, 0, 1, 0) == []


def test_mixup_coefficients_are_the_larger_part_of_a_beta_draw():
    own = numbers(mixup_alpha=0.4)[:, 0]
    assert own.min() >= 0.5
    # P(max(X, 1 - X) <= t) = F(t) - F(1 - t)
    beta = stats.beta(0.4, 0.4)
    test = stats.kstest(own, lambda t: beta.cdf(t) - beta.cdf(1 - t))
    assert test.pvalue > 1e-3


def test_cutmix_boxes_keep_the_share_that_was_drawn():
    drawn = numbers(cutmix_lambda_low=0.65, cutmix_lambda_high=1.0, cutmix_disable_prob=0.35)
    top, bottom, left, right = drawn[:, 1:].T
    assert np.all((top >= 0) & (top <= bottom) & (bottom <= 32))
    assert np.all((left >= 0) & (left <= right) & (right <= 48))
    assert np.array_equal(drawn[:, 1:], np.round(drawn[:, 1:]))
    kept = 1 - (bottom - top) * (right - left) / (32 * 48)
    whole = kept == 1
    # 35 % are left whole, to three standard deviations, and hardly a box is under half a pixel.
    assert whole.mean() == pytest.approx(0.35, abs=3 * (0.35 * 0.65 / 4000) ** 0.5)
    cut = kept[~whole]
    assert cut.min() > 0.65 - 0.04  # a pixel more on either side
    assert cut.mean() == pytest.approx(0.825, abs=0.01)
    ratio = ((right - left) / np.maximum(bottom - top, 1))[kept < 0.8]
    assert ratio.mean() == pytest.approx(1.5, abs=0.05)  # the image's proportions
    # Anywhere in the image: the middle of the boxes is the middle of the image.
    assert ((top + bottom) / 2).mean() == pytest.approx(16, abs=0.3)
    assert ((left + right) / 2).mean() == pytest.approx(24, abs=0.4)


def test_clipped_boxes_lie_at_the_edges_as_often_as_their_centres_do():
    options = {"cutmix_lambda_low": 0.75, "cutmix_lambda_high": 0.75}
    drawn = numbers(cutmix_boxes="clipped", **options)
    top, bottom = drawn[:, 1], drawn[:, 2]
    assert set((bottom - top).tolist()) == {16.0}
    assert np.all((top >= 0) & (bottom <= 32))
    # The centre, uniform from 0 to 32, is moved to 8 where it is less: a quarter of the boxes.
    assert (top == 0).mean() == pytest.approx(0.25 + 0.5 / 32, abs=0.03)
    assert (numbers(**options)[:, 1] == 0).mean() == pytest.approx(0.5 / 16, abs=0.02)


def test_a_fixed_share_gives_boxes_of_one_size():
    drawn = numbers(cutmix_lambda_low=0.75, cutmix_lambda_high=0.75)
    assert set((drawn[:, 2] - drawn[:, 1]).tolist()) == {16.0}  # half of 32: sqrt(1 - 3/4) = 1/2


def test_the_numbers_depend_on_seed_epoch_and_call_alone():
    values = {"mixup_alpha": 0.2, "cutmix_lambda_low": 0.5}
    first = numbers(**values)
    np.random.seed(7)
    torch.manual_seed(7)
    assert np.array_equal(numbers(**values), first)
    for change in ({"seed": 1}, {"epoch": 2}, {"call": 1}):
        assert not np.array_equal(numbers(**{**values, **change}), first)


def test_processes_together_have_the_numbers_of_one():
    config = TrainingConfig(epochs=1, mixup_alpha=0.2, cutmix_lambda_low=0.5)
    shape = (24, 3, 32, 48)  # 2 steps of 4 replicas of 3 images
    (whole,) = draw(config, shape, 5, 2, 7)
    parts = [
        draw(config, (12, *shape[1:]), 5, 2, 7, Share(steps=2, rows=6, processes=2, process=p))[0]
        for p in (0, 1)
    ]
    # [step][replica][image]: each process has two of the replicas in each step.
    expected = whole.reshape(2, 4, 3, 5)
    for process, part in enumerate(parts):
        replicas = slice(2 * process, 2 * process + 2)
        assert torch.equal(part, expected[:, replicas].reshape(12, 5))
