"""One run of a comparison: whether its norm is defined, and the figures that it leaves."""

from __future__ import annotations

import dataclasses
import statistics
import warnings
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import torch
from torch import nn

from ipu_proxynorm.config import RunConfig, documentation, loads
from ipu_proxynorm.config.check import get
from ipu_proxynorm.data.digest import covers
from ipu_proxynorm.data.image_data import ImageData
from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.files.checkpoint import Checkpoint, load_checkpoint
from ipu_proxynorm.norm import GroupNormAct
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.interruption import Interruption
from ipu_proxynorm.run.records import Records
from ipu_proxynorm.run.run import Run, build
from ipu_proxynorm.training.diagnosis import Diverged
from ipu_proxynorm.training.loop import fit
from ipu_proxynorm.training.results import EpochResult, StepResult
from ipu_proxynorm.training.validation import evaluate

Results = Iterator[Union[StepResult, EpochResult]]
#: Takes the results of a run; of it, and of the host calls done of the epoch under way.
Show = Callable[[Run, int, Results], object]
#: Keys on which no figure depends, given that the images are the same.
ELSEWHERE = (
    *("name", "runs", "data.path", "data.workers", "ipu.executable_cache"),
    *("training.checkpoint_every", "training.checkpoint_minutes", "training.keep_checkpoints"),
    *("training.line_seconds", "training.patience", "training.wandb"),
)


def figures_depend_on(config: RunConfig, data: Optional[ImageData]) -> Dict[str, Any]:
    """Return the keys, with their values, from which the figures of a run follow, given its images.

    Args:
        config: of the run.
        data: its images: where they can only be counted, their path stands for them. None: there
            are none.
    """
    elsewhere = [key for key in ELSEWHERE if key != "data.path" or data is None or covers(data)]
    names = [key.name for key in documentation() if key.name not in elsewhere]
    return {name: get(config, name) for name in names}


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


def train_trial(
    config: RunConfig,
    change: Optional[Callable[[nn.Module], object]] = None,
    interruption: Optional[Interruption] = None,
    show: Optional[Show] = None,
) -> Trial:
    """Train as ``config`` says, and return the figures.

    Goes on where the same run was stopped, and trains nothing where it has ended; what else is in
    its folder is replaced. Of a run that diverges the figures are those of the network as it was
    left, without a loss.

    Args:
        config: the configuration of the run.
        change: what is done to its network before anything is made of it; see `run.build`. The
            folder of the run is of no other change.
        interruption: whether a signal asks the run to stop; None: none does.
        show: takes the results of a run as they come; is given the run and the host calls that are
            done of the epoch under way. None: nobody looks.

    Raises:
        UserError: the run cannot be built, trained or written.
        Interrupted: ``interruption`` asked for it; a checkpoint is written.
    """
    run = build(config, change=change)
    directory = RunDirectory.held(config)
    diverged = ""
    try:
        start = kept(run, directory)
        if start is None:
            directory.close()
            directory = RunDirectory.create(config, overwrite=True)
        elif start.epoch < config.training.epochs:
            directory.go_on(config)
        if start is None or start.epoch < config.training.epochs:
            done = 0 if start is None or start.state is None else start.state.progress.call
            (show or _unseen)(run, done, fit(run, directory, start, interruption))
    except Diverged as error:
        diverged = str(error)
    finally:
        directory.close()
    records = Records.of(directory.path)
    seconds = [run.arithmetic.global_batch / step.images_per_second for step in records.steps]
    curve = records.curve(run.arithmetic.host_calls)
    left: Dict[str, Any] = {
        "seconds_per_step": statistics.median(seconds[1:] or seconds) if seconds else None,
        "curve": curve,
        "losses": [step.loss for step in records.steps],
        "epochs": len(records.steps) / run.arithmetic.host_calls,
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
    last = curve[-1]
    accuracy = last["validation_accuracy"]
    if accuracy is None:
        raise UserError(
            f"training.validate={config.training.validate}: a comparison needs the accuracy after "
            f"the last epoch; set it to epoch or end"
        )
    return Trial(
        accuracy=accuracy, validation_loss=last["validation_loss"], loss=last["loss"], **left
    )


def _unseen(run: Run, done: int, results: Results) -> None:
    for _ in results:
        pass


def kept(run: Run, directory: RunDirectory) -> Optional[Checkpoint]:
    """Return the checkpoint from which the very same run goes on, or with which it has ended.

    It is the newest that is whole. None where there is none, or where it was another run, had
    other images, or has not all of its metrics.
    """
    for name in directory.checkpoints():
        if name == "best":
            continue
        try:
            checkpoint = load_checkpoint(directory.checkpoint(name))
            if checkpoint.state is None:
                return None
            theirs = figures_depend_on(loads(checkpoint.config), run.data)
        except UserError as error:
            warnings.warn(f"{error}: it is not gone on with", UserNotice, stacklevel=2)
            continue
        same = theirs == figures_depend_on(run.config, run.data)
        if not same or checkpoint.state.images != run.images:
            return None
        try:
            steps = len(Records.of(directory.path).steps)
        except UserError as error:
            warnings.warn(f"{error}: {run.config.name} is trained anew", UserNotice, stacklevel=2)
            return None
        return checkpoint if steps >= checkpoint.state.progress.step else None
    return None
