"""One run of a comparison: whether its norm is defined, and the figures that it leaves."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import nn

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm import GroupNormAct
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.run import Run, build
from ipu_proxynorm.training.diagnosis import Diverged
from ipu_proxynorm.training.loop import fit
from ipu_proxynorm.training.results import EpochResult
from ipu_proxynorm.training.validation import evaluate


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a run leaves: figures of its last epoch, and of each epoch.

    Attributes:
        accuracy: the accuracy of the validation images, 0 to 1.
        validation_loss: nats.
        loss: mean training loss, nats; None where it is not finite.
        seconds_per_step: median wall time of a weight update, without the first, compiling, call;
            None of a run that diverged in its first call.
        curve: per epoch ``loss``, ``accuracy``, ``validation_loss``, ``validation_accuracy``.
        losses: training loss of each host call, nats.
        epochs: that these host calls took together.
        diverged: why the run could not go on; empty if it ended.

    """

    accuracy: float
    validation_loss: Optional[float]
    loss: Optional[float]
    seconds_per_step: Optional[float]
    curve: List[Dict[str, Optional[float]]]
    losses: List[float]
    epochs: float
    diverged: str = ""


def why_undefined(config: RunConfig) -> str:
    """Return why the run's norm is not defined for its network or micro-batch; empty if it is.

    Groups may not divide the channels. Batch Norm in training and Instance Norm need more than one
    value per statistic, which a micro-batch of 1 lacks where a layer's resolution is 1x1.

    Raises:
        UserError: something else is wrong with the configuration.

    """
    try:
        run = build(config)
    except UserError as error:
        if "do not divide" in str(error):
            return str(error)
        raise
    size = run.data.image_size
    images = torch.rand(config.ipu.micro_batch_size, run.data.channels, *size)
    lonely: List[str] = []

    def look(name: str, layer: GroupNormAct, x: torch.Tensor) -> None:
        if layer.num_groups == layer.num_features and x[0, 0].numel() == 1:
            lonely.append(name)

    for name, layer in run.model.named_modules():
        if isinstance(layer, GroupNormAct):
            layer.register_forward_pre_hook(lambda m, x, name=name: look(name, m, x[0]))
    try:
        with torch.no_grad():
            run.model.train()(images)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return (
            f"norm={config.model.norm} at ipu.micro_batch_size={config.ipu.micro_batch_size}: "
            f"a layer has one value per channel, and the variance of one value is none ({error})"
        )
    if lonely:
        return (
            f"norm={config.model.norm}: {lonely[0]!r} has one value per channel and image, so "
            f"normalization turns everything into 0"
        )
    return ""


def train_trial(config: RunConfig, change: Optional[Callable[[nn.Module], object]] = None) -> Trial:
    """Train as ``config`` says, replacing what its folder holds, and return the figures.

    Of a run that diverges they are those of the network as it was left, without a loss.

    Args:
        config: the configuration of the run.
        change: what is done to its network before anything is made of it; see `run.build`.
    """
    run = build(config, change=change)
    directory = RunDirectory.create(config, overwrite=True)
    epochs: List[EpochResult] = []
    seconds: List[float] = []
    losses: List[float] = []
    diverged = ""
    try:
        for result in fit(run, directory):
            if isinstance(result, EpochResult):
                epochs.append(result)
            else:
                losses.append(result.loss)
                seconds.append(_seconds_per_update(run, result.images_per_second))
    except Diverged as error:
        diverged = str(error)
    finally:
        directory.close()
    left: Dict[str, Any] = {
        "seconds_per_step": statistics.median(seconds[1:] or seconds) if seconds else None,
        "curve": [_point(epoch) for epoch in epochs],
        "losses": losses,
        "epochs": len(losses) / run.arithmetic.host_calls,
    }
    if diverged:
        evaluation = evaluate(run)
        return Trial(
            accuracy=evaluation.accuracy,
            validation_loss=None,
            loss=None,
            diverged=diverged,
            **left,
        )
    last = epochs[-1]
    if last.validation is None:
        raise UserError(
            f"training.validate={config.training.validate}: a comparison needs the accuracy after "
            f"the last epoch; set it to epoch or end"
        )
    return Trial(
        accuracy=last.validation.accuracy,
        validation_loss=_finite(last.validation.loss),
        loss=_finite(last.loss),
        **left,
    )


def _point(epoch: EpochResult) -> Dict[str, Optional[float]]:
    validation = epoch.validation
    return {
        "loss": _finite(epoch.loss),
        "accuracy": epoch.accuracy,
        "validation_loss": None if validation is None else _finite(validation.loss),
        "validation_accuracy": None if validation is None else validation.accuracy,
    }


def _seconds_per_update(run: Run, images_per_second: float) -> float:
    return run.arithmetic.global_batch / images_per_second


def _finite(value: float) -> Optional[float]:
    return value if math.isfinite(value) else None
