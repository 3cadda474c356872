"""Mix-up and cut-mix on the device, within the micro-batch, by numbers that the host has drawn.

The numbers come as ``(N, 5)`` float32, a row an image: the mix-up coefficient (the image's own
share), and the cut-mix box as first row, row behind the last, first column, column behind the last.
The partner of an image is the one before it in the micro-batch; for cut-mix after mix-up the one
two before it, so that four different images meet where there are so many. All shapes are static,
and the operators are ones that PopTorch has.

Sources: Zhang et al., *mixup*, 2018 (arXiv 1710.09412); Yun et al., *CutMix*, 2019 (arXiv
1905.04899). Rolling the micro-batch follows Graphcore's example applications.
"""

from __future__ import annotations

import dataclasses
from typing import List, Tuple

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Mixing:
    """Which ways of mixing images are compiled in."""

    mixup: bool = False
    cutmix: bool = False

    def cutmix_shift(self, images: int) -> int:
        """Return how far before an image its cut-mix partner stands in a micro-batch of so many."""
        return 2 if self.mixup and images > 2 else 1


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels lie in each image's box, bool ``(N, 1, height, width)``.

    Args:
        boxes: ``(N, 4)``, see the module.
        height: the height of the images, pixels.
        width: likewise.
    """
    top, bottom, left, right = (boxes[:, i].view(-1, 1, 1, 1) for i in range(4))
    rows = torch.arange(height, device=boxes.device).to(boxes.dtype).view(1, 1, -1, 1)
    columns = torch.arange(width, device=boxes.device).to(boxes.dtype).view(1, 1, 1, -1)
    inside_rows = torch.logical_and(rows >= top, rows < bottom)  # (N, 1, height, 1)
    inside_columns = torch.logical_and(columns >= left, columns < right)  # (N, 1, 1, width)
    return torch.logical_and(inside_rows, inside_columns)


def mix_images(images: Tensor, numbers: Tensor, mixing: Mixing) -> Tensor:
    """Return the images, mixed up, then with boxes of others pasted in.

    Args:
        images: float ``(N, C, H, W)``.
        numbers: ``(N, 5)``, see the module.
        mixing: what to do.
    """
    if mixing.mixup:
        own = numbers[:, 0].view(-1, 1, 1, 1).to(images.dtype)
        images = own * images + (1 - own) * torch.roll(images, 1, dims=0)
    if mixing.cutmix:
        mask = box_mask(numbers[:, 1:], images.shape[2], images.shape[3])
        partners = torch.roll(images, mixing.cutmix_shift(images.shape[0]), dims=0)
        images = torch.where(mask, partners, images)
    return images


def mixed_labels(
    labels: Tensor, numbers: Tensor, mixing: Mixing, pixels: int
) -> List[Tuple[Tensor, Tensor]]:
    """Return the labels ``(N,)`` of all that is in each image, with their shares ``(N,)``.

    Args:
        labels: integers ``(N,)``.
        numbers: ``(N, 5)``, see the module.
        mixing: what was done.
        pixels: the pixels of an image, height times width.
    """
    shares = [(0, torch.ones_like(numbers[:, 0]))]
    if mixing.mixup:
        own = numbers[:, 0]
        shares = [(0, own), (1, 1 - own)]
    if mixing.cutmix:
        shift = mixing.cutmix_shift(labels.shape[0])
        pasted = (numbers[:, 2] - numbers[:, 1]) * (numbers[:, 4] - numbers[:, 3]) / pixels
        shares = [
            *((back, share * (1 - pasted)) for back, share in shares),
            *((back + shift, torch.roll(share, shift, dims=0) * pasted) for back, share in shares),
        ]
    return [
        (labels if back == 0 else torch.roll(labels, back, dims=0), share) for back, share in shares
    ]
