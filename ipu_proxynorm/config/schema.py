"""The keys of a run: dataclasses with a type, a default and a sentence for each key."""

from __future__ import annotations

import dataclasses
from typing import Any, Iterator, List, Optional, Tuple, get_type_hints

from omegaconf import MISSING


def key(default: Any, text: str) -> Any:
    """Return a dataclass field with its documentation; lists are copied for each instance."""
    metadata = {"help": text}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(config: type, text: str) -> Any:
    """Return a dataclass field that holds another dataclass of keys."""
    return dataclasses.field(default_factory=config, metadata={"help": text})


@dataclasses.dataclass
class ModelConfig:
    """The network."""

    name: str = key(MISSING, "network, e.g. resnetv2_20 (32x32 inputs) or resnetv2_50 (224x224)")
    norm: str = key(
        "gn4+pn",
        "norm spec: bn, in, ln, gn<groups> or none; ln and gn<groups> also with +pn; any with +ws",
    )
    activation: str = key("relu", "activation after each norm: relu or silu")
    width: Optional[int] = key(
        None, "channels of the first group of blocks; null: the network's own"
    )


@dataclasses.dataclass
class DataConfig:
    """The images."""

    name: str = key(MISSING, "dataset: digits (comes with scikit-learn) or image_folder")
    path: Optional[str] = key(
        None, "image_folder: a folder with train/<class>/ and val/<class>/ below it"
    )
    image_size: Optional[int] = key(
        None, "height and width fed to the network, pixels; null: the dataset's own"
    )
    workers: int = key(0, "worker processes that read images on the host; 0: none")


@dataclasses.dataclass
class IPUConfig:
    """How the network and the batch are laid out over IPUs."""

    micro_batch_size: int = key(MISSING, "images that one replica computes at once")
    replication_factor: int = key(1, "copies of the whole network, each on its own IPUs")
    gradient_accumulation: int = key(
        1, "micro-batches of a replica per weight update; at least 2S-1 in a pipeline of S stages"
    )
    device_iterations: int = key(1, "weight updates per host call")
    inference_device_iterations: int = key(
        1, "micro-batches of a replica per host call in validation; raised to S for S stages"
    )
    splits: List[str] = key(
        [], "layers at which the next pipeline stage begins, each on its own IPU; []: one IPU"
    )
    execution: str = key("pipelined", "order of the stages: pipelined or sharded")
    available_memory_proportion: Optional[float] = key(
        None, "SRAM that convolution temporaries may take, 0 to 1; null: Poplar's default"
    )
    stochastic_rounding: bool = key(False, "round float16 results stochastically")


@dataclasses.dataclass
class OptimizerConfig:
    """The weight update."""

    name: str = key("sgd", "sgd, adam, adamw or rmsprop")
    lr: float = key(0.1, "learning rate at the height of the schedule")
    momentum: float = key(0.9, "sgd and rmsprop: momentum")
    weight_decay: float = key(
        1e-4, "decay of weights and of Proxy Norm's proxy parameters; norms and biases have none"
    )
    loss_scaling: float = key(1.0, "factor on the loss in the backward pass")


@dataclasses.dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    name: str = key("cosine", "cosine (to zero at the last update) or constant")
    warmup_epochs: float = key(0.0, "epochs of linear rise from zero to optimizer.lr")


@dataclasses.dataclass
class TrainingConfig:
    """The loop."""

    epochs: int = key(MISSING, "passes over the training images")
    label_smoothing: float = key(0.0, "share of the target spread over all classes, 0 to 1")


@dataclasses.dataclass
class RunConfig:
    """One run, as written in ``configs/*.yaml``."""

    name: str = key(MISSING, "name of the run and of its folder")
    runs: str = key("runs", "folder that holds the runs' folders")
    seed: int = key(0, "seed of weights, shuffling and device randomness")
    model: ModelConfig = section(ModelConfig, "the network")
    data: DataConfig = section(DataConfig, "the images")
    ipu: IPUConfig = section(IPUConfig, "layout over IPUs")
    optimizer: OptimizerConfig = section(OptimizerConfig, "weight update")
    schedule: ScheduleConfig = section(ScheduleConfig, "learning rate over the run")
    training: TrainingConfig = section(TrainingConfig, "the loop")


@dataclasses.dataclass(frozen=True)
class Key:
    """One documented key: dotted name, type as a user writes it, default, sentence."""

    name: str
    type: str
    default: Any
    text: str


def type_name(hint: Any) -> str:
    """Return a type hint in a user's words, e.g. ``int or null``."""
    arguments = getattr(hint, "__args__", None)
    if getattr(hint, "__origin__", None) is list and arguments:
        return f"list of {type_name(arguments[0])}"
    if arguments and type(None) in arguments:
        return f"{type_name(arguments[0])} or null"
    return str(getattr(hint, "__name__", hint))


def walk(config: type = RunConfig, prefix: str = "") -> Iterator[Tuple[str, Any, Any]]:
    """Yield (dotted name, type hint, dataclass field) of every key, sections descended into."""
    hints = get_type_hints(config)
    for entry in dataclasses.fields(config):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from walk(hint, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", hint, entry


def documentation() -> List[Key]:
    """Return every key of a run with its type, default and meaning."""
    keys = []
    for name, hint, entry in walk():
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        keys.append(Key(name, type_name(hint), default, entry.metadata["help"]))
    return keys
