"""The host's part of mix-up and cut-mix: the numbers of each image, drawn anew for each call."""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from ipu_proxynorm.config import TrainingConfig
from ipu_proxynorm.data import Share
from ipu_proxynorm.ipu import Mixing

#: Keeps these numbers apart from others that are drawn from the same seed.
STREAM = 0x313


def mixing_of(config: TrainingConfig) -> Mixing:
    """Return which ways of mixing ``config`` asks for."""
    return Mixing(mixup=config.mixup_alpha > 0, cutmix=config.cutmix_lambda_low < 1)


def draw(
    config: TrainingConfig,
    shape: Sequence[int],
    seed: int,
    epoch: int,
    call: int,
    share: Optional[Share] = None,
) -> List[Tensor]:
    """Return the third input of the program for one host call, none if nothing is mixed.

    The numbers depend on the arguments alone, so nothing has to be saved to resume a run.

    Args:
        config: ``mixup_alpha`` and the cut-mix keys.
        shape: the shape of the images of the host call, ``(N, C, H, W)``.
        seed: the seed of the run.
        epoch: from 1.
        call: host call within the epoch, from 0.
        share: what this process has of the combined batch of all processes, so that each image has
            the numbers that it has in one process; None: there is one process.

    Returns:
        One tensor ``(N, 5)`` float32, see :mod:`ipu_proxynorm.ipu.mixing`, or nothing.
    """
    mixing = mixing_of(config)
    if not (mixing.mixup or mixing.cutmix):
        return []
    random = np.random.default_rng([seed, epoch, call, STREAM])
    images = shape[0] if share is None else share.combined_batch
    numbers = np.zeros((images, 5), dtype=np.float32)
    if mixing.mixup:
        numbers[:, 0] = mixup_coefficients(random, images, config.mixup_alpha)
    if mixing.cutmix:
        own = random.uniform(config.cutmix_lambda_low, config.cutmix_lambda_high, images)
        own[random.random(images) < config.cutmix_disable_prob] = 1
        clipped = config.cutmix_boxes == "clipped"
        numbers[:, 1:] = boxes(random, own, (shape[2], shape[3]), clipped)
    return [torch.from_numpy(numbers if share is None else share.of(numbers))]


def mixup_coefficients(random: np.random.Generator, images: int, alpha: float) -> np.ndarray:
    """Return each image's own share: of Beta(alpha, alpha) the larger part, so 1/2 or more."""
    own = random.beta(alpha, alpha, images)
    return np.maximum(own, 1 - own)


def boxes(
    random: np.random.Generator, own: np.ndarray, size: Tuple[int, int], clipped: bool = False
) -> np.ndarray:
    """Return boxes ``(N, 4)`` that leave the share ``own`` of each image, rounded to pixels.

    A box has the image's proportions and lies anywhere within it, each place as likely as another;
    ``clipped``: its centre is drawn from the whole image, and a box that would reach over an edge
    is moved to it (Graphcore's applications).

    Args:
        random: where the places are drawn from.
        own: ``(N,)``, 0 to 1.
        size: height and width of the images, pixels.
        clipped: whether centres are uniform, instead of places.
    """
    ends = []
    for side in size:
        length = side * np.sqrt(1 - own)
        place = random.random(len(own))
        first = (side - length) * place
        if clipped:
            first = np.clip(side * place - length / 2, 0, side - length)
        ends += [np.round(first), np.round(first + length)]
    return np.stack(ends, axis=1)
