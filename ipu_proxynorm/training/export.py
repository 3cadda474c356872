"""The weights of a checkpoint for other programs: which, under whose names, and where from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from torch import Tensor

import ipu_proxynorm
from ipu_proxynorm.config import ModelConfig, RunConfig, loads
from ipu_proxynorm.data import pixel_statistics
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import Checkpoint, Progress
from ipu_proxynorm.ipu import create_network, precision_of, set_weights_type
from ipu_proxynorm.models import creating_call, default_resolution, to_timm, to_torchvision
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.inputs import Inputs, undescribed
from ipu_proxynorm.run.run import averaged, load_state, own_image_size

WEIGHTS = ("raw", "average")


@dataclasses.dataclass(frozen=True)
class Export:
    """Weights by name, and what to know of them.

    Attributes:
        weights: tensors of the types that the run trained them in.
        metadata: in plain words, by name.

    """

    weights: Mapping[str, Tensor]
    metadata: Mapping[str, str]


def chosen_weights(checkpoint: Checkpoint, which: str) -> Dict[str, Tensor]:
    """Return a checkpoint's weights or their average, in the types of the weights.

    Args:
        checkpoint: the checkpoint of a run.
        which: one of :data:`WEIGHTS`.

    Raises:
        UserError: the run kept no average.
    """
    if which == "raw":
        return dict(checkpoint.weights)
    average = averaged(checkpoint)
    if average is None:
        raise UserError(
            "--weights average: the checkpoint holds no averaged weights; a run keeps them with "
            "training.average=exponential or mean; export the weights with --weights raw"
        )
    types = {name: value.dtype for name, value in checkpoint.weights.items()}
    return {name: value.to(types[name]) for name, value in average.weights.items()}


def dimensions(weights: Mapping[str, Tensor]) -> Tuple[int, int]:
    """Return the number of classes and of image channels of a network, from its weights."""
    convolutions = [value for value in weights.values() if value.dim() == 4]
    classifiers = [value for value in weights.values() if value.dim() == 2]
    return len(classifiers[-1]), convolutions[0].shape[1]


def export(checkpoint: Checkpoint, which: str = "raw", provider: Optional[str] = None) -> Export:
    """Return what of a checkpoint other programs can use.

    Args:
        checkpoint: the checkpoint of a run.
        which: ``raw`` weights, or their ``average``.
        provider: ``torchvision`` or ``timm``: by the names of their networks; None: by ours.

    Raises:
        UserError: the checkpoint has no average, holds another network than its configuration says,
            or the provider does not have the network.
    """
    config = loads(checkpoint.config)
    weights = chosen_weights(checkpoint, which)
    classes, channels = dimensions(weights)
    size = own_image_size(config.data, config.model.name) or default_resolution(config.model.name)
    call = None
    if provider is not None:
        call = call_of(provider, config.model, classes, channels)
    model = create_network(config.model, classes, channels, (size, size))
    set_weights_type(model, precision_of(config.ipu.precision))
    load_state(model, weights, config.model.name, checkpoint.epoch)
    if provider is not None:
        weights = to_torchvision(model) if provider == "torchvision" else to_timm(model)
    about = metadata(checkpoint, config, which)
    about.update(num_classes=str(classes), in_chans=str(channels))
    inputs = (
        Inputs.read(checkpoint.inputs)
        if checkpoint.inputs
        else undescribed(config, classes, channels, size)
    )
    about["inputs"] = inputs.json()
    if call is not None:
        about["network"] = call
    return Export(weights, about)


def call_of(provider: str, config: ModelConfig, num_classes: int, in_chans: int) -> str:
    """Return the expression that creates the network with torchvision or timm.

    Raises:
        UserError: they do not have it.
    """
    options = model_options(config)
    try:
        return creating_call(provider, config.name, config.norm, num_classes, in_chans, options)
    except UserError as error:
        raise UserError(
            f"--as {provider}: {error}; without --as the weights keep our own names"
        ) from error


def model_options(config: ModelConfig) -> Dict[str, Any]:
    """Return the section ``model`` of a run as ``create_model`` names it, name and norm aside."""
    options = dataclasses.asdict(config)
    del options["name"], options["norm"]
    options["act_layer"] = options.pop("activation")
    return options


def metadata(checkpoint: Checkpoint, config: RunConfig, which: str) -> Dict[str, str]:
    """Return what to know of the weights, as safetensors keeps it: text by name."""
    progress = checkpoint.state.progress if checkpoint.state else Progress(checkpoint.epoch)
    mean, std = pixel_statistics(config.data.name, config.data.image_size)
    about = {
        "format": "pt",  # by which loaders know whose tensors these are
        "ipu_proxynorm": ipu_proxynorm.__version__,
        "model": config.model.name,
        "norm": config.model.norm,
        "weights": which,
        "epochs": str(progress),
        "dataset": config.data.name,
        "mean": ", ".join(f"{value:.6g}" for value in mean),
        "std": ", ".join(f"{value:.6g}" for value in std),
        "config": checkpoint.config,
    }
    if which == "raw" and checkpoint.validation_accuracy is not None:
        about["validation_accuracy"] = f"{checkpoint.validation_accuracy:.6g}"
    return about


def find_checkpoint(source: str, which: Optional[str]) -> Path:
    """Return the checkpoint that is meant.

    Args:
        source: folder of a run, or a checkpoint.
        which: one of a run's checkpoints by name; None: ``last``.

    Raises:
        UserError: there is no such folder or file, or no checkpoint in it.
    """
    path = Path(source)
    if path.is_file():
        if which is not None:
            raise UserError(
                f"--which {which}: {source!r} is one checkpoint; name the run's folder instead"
            )
        return path
    directory = RunDirectory(path)
    names = directory.checkpoints() if path.is_dir() else []
    if not names:
        why = "no checkpoint in it" if path.is_dir() else "no such folder or file"
        raise UserError(
            f"RUN_OR_CHECKPOINT {source!r}: {why}; expected the folder of a run that finished an "
            f"epoch, e.g. runs/quickstart, or a checkpoint of one"
        )
    name = which or "last"
    if name not in names:
        raise UserError(f"--which {name}: {source!r} has {', '.join(names)}")
    return directory.checkpoint(name)
