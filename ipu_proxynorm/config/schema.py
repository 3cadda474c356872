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

    name: str = key(
        MISSING,
        "network: resnetv2_<depth>, resnet<depth> (v1.5), resnextv2_<depth>_32x4d, "
        "resnext<depth>_32x4d, efficientnet_b<0..7> or random_<depth>; docs/models.md lists them",
    )
    norm: str = key(
        "gn4+pn",
        "norm spec: bn, in, ln, gn<groups> or none; ln and gn<groups> also with +pn; any with +ws",
    )
    activation: Optional[str] = key(
        None,
        "activation after each norm, e.g. relu or silu; null: the network's own (relu; silu in "
        "EfficientNet)",
    )
    norm_eps: Optional[float] = key(
        None,
        "added to the variance by every norm; null: the network's own (1e-5; 1e-3 in EfficientNet)",
    )
    width: Optional[int] = key(
        None,
        "ResNet, ResNeXt: channels of the first group of blocks; random: of every layer; null: as "
        "published",
    )
    zero_init_last: Optional[bool] = key(
        None, "ResNet, ResNeXt: start every residual branch at zero; null: no"
    )
    group_dim: Optional[int] = key(
        None, "EfficientNet: channels of each group of the grouped convolutions; null: 1, depthwise"
    )
    expansion: Optional[int] = key(
        None, "EfficientNet: channels within a block over those it reads; null: 6"
    )
    drop_path: Optional[float] = key(
        None, "EfficientNet: share of images that the last blocks' branches drop; null: 0.2"
    )
    dropout: Optional[float] = key(
        None, "EfficientNet: dropout before the classifier; null: as published, 0.2 to 0.5"
    )
    proxy_scale_in_gate: Optional[bool] = key(
        None,
        "EfficientNet: multiply with Proxy Norm's scale in squeeze-and-excite's gate, not before "
        "it: the same function for less memory traffic; null: no",
    )


@dataclasses.dataclass
class DataConfig:
    """The images."""

    name: str = key(MISSING, "dataset: digits, cifar10, cifar100, image_folder or synthetic")
    path: Optional[str] = key(
        None,
        "image_folder and cifar: a folder or zip archive with train/<class>/ and val/<class>/ (or "
        "test/); cifar also torchvision's folder",
    )
    image_size: Optional[int] = key(
        None,
        "height and width fed to the network, pixels; null: the dataset's own, for image_folder "
        "the network's (224; efficientnet_b4: 380)",
    )
    eval_image_size: Optional[int] = key(
        None, "height and width in validation, pixels; null: as data.image_size"
    )
    augment: Optional[str] = key(
        None,
        "training images: none, crop (shifted by up to 1/8, flipped) or resized (random resized "
        "crop, flipped); null: the dataset's own",
    )
    max_corrupt: int = key(
        10, "image files that may be damaged or no images; each is named and left out"
    )
    workers: int = key(0, "worker processes that read images on the host; 0: none")


@dataclasses.dataclass
class IPUConfig:
    """How the network and the batch are laid out over IPUs."""

    micro_batch_size: int = key(MISSING, "images that one replica computes at once")
    replication_factor: int = key(
        1,
        "copies of the whole network, each on its own IPUs; of all processes together, where "
        "torchrun or poprun starts several",
    )
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
    recomputation_checkpoints: List[str] = key(
        [],
        "layers whose outputs a pipeline keeps for all micro-batches in flight, so that less is "
        "recomputed at once; []: the stages' inputs only",
    )
    optimizer_state: str = key(
        "on-chip",
        "where the optimiser's state is: on-chip, sharded (over replicas) or off-chip (in "
        "Streaming Memory)",
    )
    chip: str = key("mk2", "IPUs that memory is predicted for: mk1, mk2 or bow")
    check_memory: bool = key(
        True, "predict memory before compiling, and stop at over 115 % of an IPU's"
    )
    available_memory_proportion: Optional[List[float]] = key(
        None,
        "share of SRAM that convolution temporaries may take, 0 to 1: a number, or a list of one "
        "for each stage; null: Poplar's default",
    )
    precision: str = key(
        "32.32",
        "activations.master weights, in bits of a float: 32.32, 16.32 (float16 activations, "
        "float32 weights) or 16.16",
    )
    half_partials: bool = key(
        False, "sum convolutions and matrix products in float16 (needs 16 bit activations)"
    )
    stochastic_rounding: bool = key(False, "round float16 results stochastically")
    floating_point_exceptions: bool = key(
        False, "stop at the first operator that overflows, divides by zero or makes a NaN"
    )


@dataclasses.dataclass
class OptimizerConfig:
    """The weight update."""

    name: str = key(
        "sgd",
        "sgd, sgd_combined (gradients accumulate in the velocity), rmsprop, rmsprop_tf "
        "(TensorFlow's), adam, adamw or lamb",
    )
    lr: float = key(0.1, "learning rate at the height of the schedule, for lr_batch images")
    lr_batch: Optional[int] = key(
        None,
        "images per weight update that lr is stated for: lr is multiplied by the images per "
        "update / lr_batch; null: lr as it is",
    )
    weight_decay: float = key(1e-4, "decay of weights; norms' scales and shifts, biases have none")
    proxy_weight_decay: Optional[float] = key(
        None, "decay of Proxy Norm's proxy parameters; null: weight_decay"
    )
    momentum: Optional[float] = key(None, "sgd..., rmsprop...: momentum; null: 0.9")
    nesterov: Optional[bool] = key(None, "sgd...: Nesterov's momentum; null: false")
    alpha: Optional[float] = key(
        None, "rmsprop...: decay of the mean of squares, per weight update; null: 0.99"
    )
    betas: Optional[List[float]] = key(
        None, "adam, adamw, lamb: decay of mean and of mean of squares; null: [0.9, 0.999]"
    )
    eps: Optional[float] = key(
        None, "rmsprop..., adam, adamw, lamb: added to the root (rmsprop_tf: under it); null: 1e-8"
    )
    max_weight_norm: Optional[float] = key(
        None, "lamb: upper limit of a tensor's norm in its trust ratio; null: 65500"
    )
    accumulation: str = key(
        "float32", "type in which gradients are accumulated: float32 or float16"
    )
    loss_scaling: float = key(
        1.0, "factor on the loss in the backward pass, undone in the update; at the run's end"
    )
    initial_loss_scaling: Optional[float] = key(
        None,
        "loss scaling at the start, doubled at equal intervals (each halves the velocity of sgd, "
        "though not of sgd_combined); null: loss_scaling",
    )
    auto_loss_scaling: bool = key(
        False, "let the device adjust the loss scaling to the gradients (needs 16 bit activations)"
    )


@dataclasses.dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    name: str = key("cosine", "cosine (to zero at the last update), step, exponential or constant")
    warmup_epochs: float = key(0.0, "epochs of linear rise from zero, a factor on the schedule")
    decay: Optional[float] = key(
        None, "step: factor at each of step_epochs; exponential: factor every decay_epochs"
    )
    decay_epochs: Optional[float] = key(
        None, "exponential: epochs in which the learning rate falls by decay, e.g. 2.4; null: 1"
    )
    step_epochs: Optional[List[float]] = key(
        None, "step: epochs after which the learning rate is multiplied by decay"
    )
    interval_epochs: Optional[float] = key(
        None,
        "epochs between changes of the learning rate (warm-up aside), e.g. 2.4 for a staircase; "
        "null: changed at every host call",
    )


@dataclasses.dataclass
class TrainingConfig:
    """The loop."""

    epochs: int = key(MISSING, "passes over the training images")
    label_smoothing: float = key(0.0, "share of the target spread over all classes, 0 to 1")
    mixup_alpha: float = key(
        0.0, "mix-up: coefficients are drawn from Beta(alpha, alpha); 0: no mix-up"
    )
    cutmix_lambda_low: float = key(
        1.0, "cut-mix: smallest share of an image that stays, drawn uniformly from low to high"
    )
    cutmix_lambda_high: float = key(1.0, "cut-mix: largest share that stays; low = 1: no cut-mix")
    cutmix_disable_prob: float = key(0.0, "cut-mix: share of images left whole")
    checkpoint_every: Optional[int] = key(
        None, "host calls between checkpoints within an epoch; null: after each epoch only"
    )
    checkpoint_minutes: Optional[float] = key(
        None, "minutes between checkpoints within an epoch; null: after each epoch only"
    )
    keep_checkpoints: int = key(2, "how many of the last checkpoints are kept, beside the best")
    validate: str = key(
        "epoch", "epoch (after each validate_every epochs, and the last), end (the last) or never"
    )
    validate_every: int = key(1, "epochs between validations")
    average: str = key(
        "none",
        "average of the weights, validated beside them: none, exponential or mean (of equals)",
    )
    average_decay: float = key(
        0.97, "exponential: weight of the old average at each reading of the weights"
    )
    average_from_epoch: int = key(1, "first epoch whose weights enter the average")
    weights_every: Optional[int] = key(
        None,
        "host calls between readings of the weights, for the average and for the diagnosis of an "
        "overflow; reading stops the IPUs; null: once an epoch",
    )
    analyse_every: Optional[int] = key(
        None, "epochs between records of the power after each normalization; null: none"
    )
    init_from: Optional[str] = key(
        None,
        "what weights the run starts from: a checkpoint, e.g. runs/half/last.pt, or a file of "
        "weights, .pt, .pth or .safetensors; torchvision:FILE or timm:FILE where they have theirs",
    )
    trainable: List[str] = key(
        [], "layers that train, by name or its beginning, e.g. [layer4, fc]; []: all"
    )
    wandb: Optional[str] = key(
        None, "project of Weights & Biases that the run is also logged to; null: not logged"
    )


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
