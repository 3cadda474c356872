"""What runs on the device for one micro-batch: pixels to unit scale, mixing, network, loss."""

from __future__ import annotations

from typing import Dict, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.ipu.mixing import Mixing, mix_images, mixed_labels
from ipu_proxynorm.norm import plain_operators


def smoothed_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    smoothing: float,
    mixed: Sequence[Tuple[Tensor, Tensor]] = (),
) -> Tensor:
    """Return the mean cross-entropy, 0-d float32, to targets smoothed over all classes.

    Equal to ``F.cross_entropy(..., label_smoothing=smoothing)``, which PopTorch 3.4 compiles
    without the smoothing, and without saying so.

    Args:
        logits: ``(N, classes)``.
        labels: integers ``(N,)``.
        smoothing: share of the target that is spread over all classes.
        mixed: labels ``(N,)`` and shares ``(N,)`` of all the images in each image, in place of
            ``labels``; the shares of an image sum to 1.
    """
    log_probabilities = F.log_softmax(logits.to(torch.float32), dim=1)
    if mixed:
        losses = [
            share * F.nll_loss(log_probabilities, of, reduction="none") for of, share in mixed
        ]
        loss = torch.stack(losses).sum(dim=0).mean()  # (targets, N) -> 0-d
    else:
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
        mixing: which ways of mixing images the third input of ``forward`` serves.
        activations: type of the images that the network sees, and so of its activations.
        channel_grouping: how the device's own Group Norm groups channels.
        overlap_io: let the next micro-batch's inputs, and the last one's outputs, travel while the
            network computes. Only where the program is the whole model, not a part of another.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        label_smoothing: float = 0.0,
        mixing: Optional[Mixing] = None,
        activations: torch.dtype = torch.float32,
        channel_grouping: str = "contiguous",
        overlap_io: bool = False,
    ) -> None:
        super().__init__()
        self.channel_grouping, self.overlap_io = channel_grouping, overlap_io
        self.model = model
        self.label_smoothing = label_smoothing
        self.mixing = mixing or Mixing()
        self.activations = activations
        # Not in the state dict: they belong to the data, which the run's configuration names.
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(
        self, images: Tensor, labels: Optional[Tensor] = None, mixing: Optional[Tensor] = None
    ) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        """Return logits ``(N, classes)``, or with labels the loss and the number of right answers.

        Args:
            images: uint8 ``(N, C, H, W)``; a quarter of the traffic of float pixels.
            labels: integers ``(N,)``.
            mixing: ``(N, 5)``, see :mod:`ipu_proxynorm.ipu.mixing`; None: images are not mixed.

        Returns:
            Without labels: logits ``(N, classes)``. With labels: mean cross-entropy of the
            micro-batch, 0-d, the program's loss; number of right answers, 0-d float. A mixed
            image counts as right by the label of its own part.
        """
        if not self.overlap_io:
            return self._compute(images, labels, mixing)
        mode = poptorch.OverlapMode.OverlapAccumulationLoop
        given: Dict[str, Tensor] = {"images": images}
        given.update({} if labels is None else {"labels": labels})
        given.update({} if mixing is None else {"mixing": mixing})
        arriving = poptorch.set_overlap_for_input(given, mode)
        return poptorch.set_overlap_for_output(self._compute(**arriving), mode)

    def _compute(
        self, images: Tensor, labels: Optional[Tensor] = None, mixing: Optional[Tensor] = None
    ) -> Union[Tensor, Tuple[Tensor, Tensor]]:
        pixels = ((images.to(self.mean.dtype) - self.mean) / self.std).to(self.activations)
        if mixing is not None:
            pixels = mix_images(pixels, mixing, self.mixing)
        # No autograd.Function exists on the IPU; and its Group Norm, not the host's, is as told.
        grouping = self.channel_grouping if poptorch.isRunningOnIpu() else None
        with plain_operators(grouping):
            logits = self.model(pixels)
        if labels is None:
            return logits
        mixed = []
        if mixing is not None:
            mixed = mixed_labels(labels, mixing, self.mixing, images.shape[2] * images.shape[3])
        loss = smoothed_cross_entropy(logits, labels, self.label_smoothing, mixed)
        right = (logits.argmax(dim=1) == labels).to(torch.float32).sum()
        return poptorch.identity_loss(loss, reduction="none"), right
