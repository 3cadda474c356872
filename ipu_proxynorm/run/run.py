"""A run put together from its configuration: data, network, program, optimiser."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Callable, List, Mapping, Optional, Tuple

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from ipu_proxynorm.backend import check_environment
from ipu_proxynorm.config import DataConfig, RunConfig, loads
from ipu_proxynorm.data import (
    ImageData,
    Part,
    create_data,
    dataset,
    described_data,
    digest,
)
from ipu_proxynorm.errors import UserError, blame
from ipu_proxynorm.files.checkpoint import Checkpoint, load_checkpoint
from ipu_proxynorm.files.weights import (
    SAFETENSORS,
    may_be_checkpoint,
    read_metadata,
    read_weights,
)
from ipu_proxynorm.ipu import (
    Classification,
    PipelineStage,
    create_network,
    place,
    precision_of,
    set_weights_type,
)
from ipu_proxynorm.ipu.custom_operator import use_custom_operator
from ipu_proxynorm.models import (
    PROVIDERS,
    Network,
    OtherClasses,
    check_classes,
    check_resolution,
    default_resolution,
    load_timm,
    load_torchvision,
    without_classifier,
)
from ipu_proxynorm.models import load_weights as load_named
from ipu_proxynorm.run.arithmetic import BatchArithmetic
from ipu_proxynorm.run.fine_tuning import freeze
from ipu_proxynorm.run.mixing import mixing_of
from ipu_proxynorm.run.optimizer import create_optimizer
from ipu_proxynorm.run.processes import Processes
from ipu_proxynorm.run.schedule import create_schedule


@dataclasses.dataclass
class Run:
    """Everything that one run is made of; ``program`` holds ``model`` and its loss.

    ``origin`` says which weights ``training.init_from`` gave it; empty: drawn from the seed.
    ``processes`` are those that share it.
    """

    config: RunConfig
    data: ImageData
    model: Network
    program: Classification
    stages: List[PipelineStage]
    arithmetic: BatchArithmetic
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    origin: str = ""
    processes: Processes = dataclasses.field(default_factory=Processes)

    @functools.cached_property
    def images(self) -> str:
        """Which images they are: their numbers, and a digest."""
        return digest(self.data)


def build(
    config: RunConfig,
    initialize: bool = True,
    shallow: bool = False,
    processes: Optional[Processes] = None,
    change: Optional[Callable[[Network], object]] = None,
) -> Run:
    """Return the run that ``config`` describes, its weights drawn from ``config.seed``.

    Args:
        config: the configuration of the run.
        initialize: load the weights that ``training.init_from`` names; False where others follow.
        shallow: with a network of few blocks, to try the rest.
        processes: that share the run; None: this one only.
        change: what is done to the network before anything is made of it: an analysis' own units.

    Raises:
        UserError: a name is unknown, the groups do not divide the channels, a split is no layer
            or out of order, a path does not exist, the images do not fill a combined batch, the
            processes cannot share the replicas, or an environment variable is none that programs
            run with.
    """
    check_environment()
    processes = processes or Processes()
    processes.instance.replicas(config.ipu)
    data = create_images(config)
    arithmetic = BatchArithmetic.of(config.ipu, data.sizes()[0])
    torch.manual_seed(config.seed)
    model, stages, program, optimizer = create_program(
        config, data, arithmetic.global_batch, shallow, change
    )
    if config.data.eval_image_size is not None:
        with blame("data.eval_image_size", config.data.eval_image_size):
            check_resolution(config.model.name, config.data.eval_image_size)
    run = Run(
        config=config,
        data=data,
        model=model,
        program=program,
        stages=stages,
        arithmetic=arithmetic,
        optimizer=optimizer,
        schedule=create_schedule(
            config.schedule, optimizer, arithmetic.host_calls, config.training.epochs
        ),
        processes=processes,
    )
    if initialize and config.training.init_from is not None:
        run.origin = load_origin(run, config.training.init_from, config.training.new_head)
    return run


def load_origin(run: Run, origin: str, new_head: bool = False) -> str:
    """Give the run's network the weights that ``training.init_from`` names; say which in words.

    Of another run's checkpoint the average of the weights, where that run kept one, as the networks
    of the papers' fine-tuning start from it; else the weights themselves. Of a file of weights
    those, by our names or, after ``torchvision:`` or ``timm:``, by theirs.

    Args:
        run: whose network it is.
        origin: the value of ``training.init_from``.
        new_head: leave the network's classifier as it was drawn.

    Raises:
        UserError: there is no such file, it is damaged, or of another network.
    """
    with blame("training.init_from", origin):
        try:
            said = _load_origin(run, origin, new_head)
        except OtherClasses as error:
            raise UserError(
                f"{error}; set training.new_head=true to load all but the classifier, which is "
                f"then drawn anew"
            ) from error
    return f"{said}, with a new classifier" if new_head else said


def _load_origin(run: Run, origin: str, new_head: bool) -> str:
    provider, path = split_origin(origin)
    if provider or path.suffix == SAFETENSORS or not may_be_checkpoint(path):
        load: Callable[[Network, Mapping[str, Tensor], bool], None] = {
            "torchvision": load_torchvision,
            "timm": load_timm,
            "": load_named,
        }[provider]
        weights = read_weights(path)
        check_stated(run, path)
        load(run.model, weights, new_head)
        return f"{f'{provider} ' if provider else ''}weights in {path}"
    checkpoint = load_checkpoint(path)
    average = averaged(checkpoint)
    kind = "weights" if average is None else "averaged weights"
    chosen = checkpoint if average is None else average
    if new_head:
        chosen = dataclasses.replace(chosen, weights=without_classifier(run.model, chosen.weights))
    check_classes(run.model, chosen.weights)
    load_weights(run, chosen)
    return f"{kind} of {path} (epoch {checkpoint.epoch})"


def check_stated(run: Run, path: Path) -> None:
    """Refuse weights whose file says that they are of another network than the run's.

    Raises:
        UserError: they are. Shapes do not tell: Group Norm of any number of groups has the same.
    """
    stated, model = read_metadata(path), run.config.model
    differing = [
        f"model.{field}={stated[key]} instead of {getattr(model, field)}"
        for key, field in (("model", "name"), ("norm", "norm"))
        if key in stated and stated[key] != getattr(model, field)
    ]
    if differing:
        raise UserError(f"holds another network than the configuration asks for: {differing[0]}")


def split_origin(origin: str) -> Tuple[str, Path]:
    """Return whose names a file of weights has (empty: ours), and the file."""
    for provider in PROVIDERS:
        if origin.startswith(f"{provider}:"):
            return provider, Path(origin[len(provider) + 1 :])
    return "", Path(origin)


def averaged(checkpoint: Checkpoint) -> Optional[Checkpoint]:
    """Return the checkpoint with the average of its run's weights; None: there is none."""
    kept = checkpoint.state.extra.get("average") if checkpoint.state is not None else None
    if kept is None or not kept["readings"]:
        return None
    return dataclasses.replace(checkpoint, weights=kept["values"])


def create_program(
    config: RunConfig,
    data: ImageData,
    global_batch: int,
    shallow: bool = False,
    change: Optional[Callable[[Network], object]] = None,
) -> Tuple[Network, List[PipelineStage], Classification, torch.optim.Optimizer]:
    """Return network, its stages, the program around it and its optimiser.

    Args:
        config: the configuration of the run.
        data: its images; only what they have in common is looked at.
        global_batch: images per weight update.
        shallow: with a network of few blocks, to try the rest.
        change: what is done to the network first.
    """
    model = create_network(config.model, data.num_classes, data.channels, data.image_size, shallow)
    if change is not None:
        change(model)
    precision = precision_of(config.ipu.precision)
    set_weights_type(model, precision)
    freeze(model, config.training.trainable)
    stages = place(model, config.ipu.splits, config.ipu.recomputation_checkpoints)
    library = config.ipu.proxy_norm_operator
    if library is not None:
        with blame("ipu.proxy_norm_operator", library):
            use_custom_operator(model, library)
    program = Classification(
        model,
        data.mean,
        data.std,
        config.training.label_smoothing,
        mixing_of(config.training),
        precision.activations,
        config.model.channel_grouping,
        config.ipu.overlap_io,
    )
    return model, stages, program, create_optimizer(config.optimizer, model, global_batch)


def own_image_size(data: DataConfig, network: str) -> Optional[int]:
    """Return height and width of training images, pixels; None: the dataset's own.

    A folder of images has none: without ``data.image_size`` they take the network's.
    """
    if data.image_size is None and dataset(data.name).is_folder:
        return default_resolution(network)
    return data.image_size


def create_images(config: RunConfig) -> ImageData:
    """Return the images of a run.

    Raises:
        UserError: as `data.create_data` does.
    """
    data = config.data
    return create_data(
        *(data.name, data.path, own_image_size(data, config.model.name), data.eval_image_size),
        *(data.augment, config.seed, Part(data.train_images, data.held_out), data.label),
    )


def run_data(data: DataConfig, network: str) -> ImageData:
    """Return what a run's images are, without reading any; see :func:`data.described_data`.

    Args:
        data: names the dataset.
        network: gives a folder's images their size where ``data.image_size`` does not.
    """
    return described_data(data.name, data.path, own_image_size(data, network), data.label)


def load_weights(run: Run, checkpoint: Checkpoint) -> None:
    """Give the run's network the weights of ``checkpoint``.

    Raises:
        UserError: the checkpoint is of another network.
    """
    trained, wanted = loads(checkpoint.config).model, run.config.model
    differing = [
        f"model.{field.name}={getattr(trained, field.name)} instead of "
        f"{getattr(wanted, field.name)}"
        for field in dataclasses.fields(wanted)
        if getattr(trained, field.name) != getattr(wanted, field.name)
    ]
    if differing:
        raise UserError(
            f"checkpoint of epoch {checkpoint.epoch} holds another network than the configuration "
            f"asks for: {', '.join(differing)}; use it with the configuration it was trained with"
        )
    load_state(run.model, checkpoint.weights, wanted.name, checkpoint.epoch)


def load_state(model: Network, weights: Mapping[str, Tensor], name: str, epoch: int) -> None:
    """Give ``model``, a network of that name, the weights of a checkpoint after ``epoch``.

    Raises:
        UserError: they do not fit.
    """
    try:
        model.load_state_dict(dict(weights))
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"checkpoint of epoch {epoch} holds another network than "
            f"model.name={name} is here: {' '.join(str(error).split())}; use it with the "
            f"program it was trained with"
        ) from error
