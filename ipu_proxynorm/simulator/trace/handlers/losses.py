"""Rows of the table: losses."""

from __future__ import annotations

from .refusal import Refusal

_LOSSES = "popart_canonicalization/LossOps.cpp"

ROWS = [
    Refusal(
        "nll-weight",
        "A class weight in nll_loss and cross_entropy",
        lambda call: call["weight"] is not None,
        f"{_LOSSES}:101",
        "compute the loss with reduction='none', multiply it by weight[target] and give the mean "
        "to poptorch.identity_loss",
        operators="nll_loss_forward nll_loss2d_forward",
    ),
    Refusal(
        "smoothed-mean",
        "cross_entropy with label_smoothing, reduction='mean' and classes as the target",
        lambda call: (
            call["label_smoothing"] > 0.0
            and call["reduction"] in ("mean", 1)
            and not call["target"].is_floating_point()
        ),
        "dispatch_tracer/TypeInferenceHandler.cpp:34: torch 2.0 makes a masked_select of it, which "
        "has no Meta kernel",
        "use reduction='sum' and divide by the number of targets, in poptorch.identity_loss",
        functions="cross_entropy",
    ),
    Refusal(
        "ctc-unreduced",
        "ctc_loss with reduction='none'",
        lambda call: call["reduction"] in ("none", 0),
        f"{_LOSSES}:579",
        "use reduction='sum' or 'mean'",
        functions="ctc_loss",
    ),
    Refusal(
        "ctc-unbatched",
        "ctc_loss of log_probs without a batch dimension",
        lambda call: call["log_probs"].dim() != 3,
        "popart/op/ctc.cpp:82",
        "give a batch of one: log_probs.unsqueeze(1)",
        functions="ctc_loss",
    ),
    Refusal(
        "ctc-concatenated",
        "ctc_loss of targets in one row",
        lambda call: call["log_probs"].dim() == 3 and call["targets"].dim() != 2,
        "popart/op/ctc.cpp:116",
        "pad the targets to (batch, length)",
        functions="ctc_loss",
    ),
    Refusal(
        "l1-scalar",
        "l1_loss of 0-d tensors",
        lambda call: call["input"].dim() == 0 and call["target"].dim() == 0,
        "popart/op/l1.cpp:46",
        "give one of the two a dimension: reshape(1)",
        functions="l1_loss",
    ),
]
