"""What runs on the device for one micro-batch: pixels to unit scale, network, loss."""

from __future__ import annotations

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.norm import plain_operators


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy, 0-d float32, to targets smoothed over all classes.

    Equal to ``F.cross_entropy(..., label_smoothing=smoothing)``, which PopTorch 3.4 compiles
    without the smoothing, and without saying so.

    Args:
        logits: ``(N, classes)``.
        labels: integers ``(N,)``.
        smoothing: share of the target that is spread over all classes.
    """
    log_probabilities = F.log_softmax(logits.to(torch.float32), dim=1)
    loss = F.nll_loss(log_probabilities, labels)
    if smoothing == 0:
        return loss
    return (1 - smoothing) * loss - smoothing * log_probabilities.mean()


class Classification(nn.Module):
    """A classifier with the device-side parts of its input pipeline and of its loss.

    Args:
        model: ``(N, C, H, W)`` float images to ``(N, classes)`` logits.
        mean: per channel, of pixels scaled to [0, 1].
        std: per channel, likewise.
        label_smoothing: share of the target that is spread over all classes.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.label_smoothing = label_smoothing
        # Not in the state dict: they belong to the data, which the run's configuration names.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(
        self, images: Tensor, labels: Optional[Tensor] = None
    ) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """Return logits ``(N, classes)``, or with labels the loss and the number of right answers.

        Args:
            images: uint8 ``(N, C, H, W)``; a quarter of the traffic of float pixels.
            labels: integers ``(N,)``.

        Returns:
            Without labels: logits ``(N, classes)``. With labels: mean cross-entropy of the
            micro-batch, 0-d, the program's loss; number of right answers, 0-d float.
        """
        with plain_operators():  # no autograd.Function exists on the IPU
            logits = self.model((images.to(self.mean.dtype) - self.mean) / self.std)
        if labels is None:
            return logits
        loss = smoothed_cross_entropy(logits, labels, self.label_smoothing)
        right = (logits.argmax(dim=1) == labels).to(torch.float32).sum()
        return poptorch.identity_loss(loss, reduction="none"), right
