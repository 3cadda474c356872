"""The keys of a run: dataclasses with a type, a default and a sentence for each key."""

from __future__ import annotations

import dataclasses
from types import MappingProxyType
from typing import Any, Dict, List, Mapping, Optional, cast

from omegaconf import MISSING

from ipu_proxynorm.chip import CHIPS
from ipu_proxynorm.config.keys import Key, described, key, section
from ipu_proxynorm.config.optimizer_kinds import OPTIMIZERS
from ipu_proxynorm.norm.grouping import GROUPINGS
from ipu_proxynorm.placement import ON_CHIP, PLACEMENTS
from ipu_proxynorm.precision import PRECISIONS
from ipu_proxynorm.recomputation import RECOMPUTATIONS

#: More processes than any host of IPUs has cores: a slip of the pen, which no machine survives.
MOST_WORKERS = 1024


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
        above=0,
    )
    channel_grouping: str = key(
        "contiguous",
        "which channels of gn<groups> form a group; weights of one are wrong with the other",
        choices=dict(zip(GROUPINGS, ("PyTorch's", "channel c in group c mod G, faster"))),
    )
    width: Optional[int] = key(
        None,
        "ResNet, ResNeXt: channels of the first group of blocks; random: of every layer; null: as "
        "published",
        above=0,
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
        None,
        "EfficientNet: share of images that the last blocks' branches drop; null: 0.2",
        least=0,
        most=1,
    )
    dropout: Optional[float] = key(
        None,
        "EfficientNet: dropout before the classifier; null: as published, 0.2 to 0.5",
        least=0,
        most=1,
    )
    proxy_scale_in_gate: Optional[bool] = key(
        None,
        "EfficientNet: on an IPU, multiply with Proxy Norm's scale in squeeze-and-excite's gate, "
        "not before it: the same function in less memory; null: yes",
    )
    padding: Optional[str] = key(
        None,
        "EfficientNet: zeros around the input of strided convolutions; null: symmetric",
        choices={"symmetric": "PyTorch's", "same": "TensorFlow's: none before an even side"},
    )
    proxy_method: Optional[str] = key(
        None,
        "how Proxy Norm's moments are taken; null: exact",
        choices={"exact": "closed form or quadrature", "sampled": "over 200 quantiles"},
    )
    proxy_scale: Optional[str] = key(
        None,
        "EfficientNet: where Proxy Norm's scale belongs; null: full",
        choices={
            "full": "everywhere",
            "published": "not in the mean that squeeze-and-excite reads, not in the head",
        },
    )


@dataclasses.dataclass
class DataConfig:
    """The images."""

    name: str = key(
        MISSING,
        "dataset: digits, cifar10, cifar100, image_folder, webdataset, huggingface or synthetic",
    )
    path: Optional[str] = key(
        None,
        "image_folder and cifar: a folder or zip archive with train/<class>/ and val/<class>/ (or "
        "test/); cifar also torchvision's folder; webdataset: a folder of shards; huggingface: of "
        "a saved data set",
    )
    label: Optional[str] = key(
        None,
        "webdataset: ending of the files that hold classes; huggingface: their column; null: cls; "
        "the only column of classes",
    )
    image_size: Optional[int] = key(
        None,
        "height and width fed to the network, pixels; null: the dataset's own, for image_folder "
        "the network's (224; efficientnet_b4: 380)",
        above=0,
    )
    eval_image_size: Optional[int] = key(
        None, "height and width in validation, pixels; null: as data.image_size", above=0
    )
    augment: Optional[str] = key(
        None,
        "training images: none, crop (shifted by up to 1/8, flipped) or resized (random resized "
        "crop, flipped); null: the dataset's own",
    )
    train_images: Optional[int] = key(
        None,
        "train on this many of the training images, the first of each class, as many of each; "
        "null: all",
        least=1,
    )
    held_out: Optional[int] = key(
        None,
        "validate on this many of these instead of the validation images, the last of each class, "
        "and do not train on them: to choose a key without looking at the validation images; "
        "null: none",
        least=1,
    )
    max_corrupt: int = key(
        10, "image files that may be damaged; each is named and left out", least=0
    )
    max_left_out: float = key(
        0.5,
        "share of the image files that may be left out for whatever reason: damaged, no images, "
        "too large, of pixels that are not read",
        least=0,
        most=1,
    )
    workers: int = key(
        0, "worker processes that read images on the host; 0: none", least=0, most=MOST_WORKERS
    )


@dataclasses.dataclass
class IPUConfig:
    """How the network and the batch are laid out over IPUs."""

    micro_batch_size: int = key(MISSING, "images that one replica computes at once", least=1)
    replication_factor: int = key(
        1,
        "copies of the whole network, each on its own IPUs; of all processes together, where "
        "torchrun or poprun starts several",
        least=1,
    )
    gradient_accumulation: int = key(
        1,
        "micro-batches of a replica per weight update; at least 2S-1 in a pipeline of S stages",
        least=1,
    )
    device_iterations: int = key(1, "weight updates per host call", least=1)
    inference_device_iterations: int = key(
        1,
        "micro-batches of a replica per host call in validation; raised to S for S stages",
        least=1,
    )
    splits: List[str] = key(
        [], "layers at which the next pipeline stage begins, each on its own IPU; []: one IPU"
    )
    execution: str = key("pipelined", "order of the stages", choices=("pipelined", "sharded"))
    recomputation_checkpoints: List[str] = key(
        [],
        "layers whose outputs a pipeline keeps for all micro-batches in flight, so that less is "
        "recomputed at once; []: the stages' inputs only",
    )
    recomputation: Optional[str] = key(
        None,
        "what is computed again in the backward pass instead of kept; null: PopTorch's default, "
        "the stages of a pipeline but for the last, on one IPU nothing",
        choices=RECOMPUTATIONS,
    )
    optimizer_state: str = key(ON_CHIP, "where the optimiser's state is", choices=PLACEMENTS)
    chip: str = key("mk2", "IPUs that memory is predicted for", choices=CHIPS)
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
        "activations.master weights, in bits of a float",
        choices=PRECISIONS,
    )
    half_partials: bool = key(
        False, "sum convolutions and matrix products in float16 (needs 16 bit activations)"
    )
    stochastic_rounding: bool = key(False, "round float16 results stochastically")
    floating_point_exceptions: bool = key(
        False, "stop at the first operator that overflows, divides by zero or makes a NaN"
    )
    stable_norm: bool = key(
        False, "take a norm's variance in two passes: slower, without cancellation in the sums"
    )
    deterministic_workers: bool = key(
        False, "let every IPU round alike, so that replicas do not drift apart (portable)"
    )
    merge_all_reduce: bool = key(
        False, "sum the gradients of all replicas in few large exchanges instead of many small"
    )
    io_tiles: Optional[int] = key(
        None,
        "tiles of each IPU set aside for input and output; null: none",
        least=32,
        most=192,
        step=2,
    )
    overlap_io: bool = key(
        False, "send images while the IPU computes; needs io_tiles and execution=sharded"
    )
    auto_round_ipus: bool = key(
        False, "reserve a power of two of IPUs where the run needs another number"
    )
    executable_cache: Optional[str] = key(
        None, "folder in which compiled programs are kept; null: POPTORCH_CACHE_DIR, or none"
    )
    proxy_norm_operator: Optional[str] = key(
        None,
        "library of the custom operator that computes Proxy Norm's units, built of ipu/popart and "
        "never compiled so far; null: plain operators",
    )
    popart: Dict[str, Any] = key(
        {}, "further session options of PopART by name, e.g. {enableOutlining: false}; null: unset"
    )
    engine: Dict[str, Any] = key(
        {}, "options of the Poplar engine by name, e.g. {target.hostSyncTimeout: 600}; null: unset"
    )

    @property
    def images_per_update(self) -> int:
        """Images behind one weight update, of all replicas and processes together."""
        return self.micro_batch_size * self.replication_factor * self.gradient_accumulation


@dataclasses.dataclass
class OptimizerConfig:
    """The weight update."""

    name: str = key("sgd", "optimiser", choices=OPTIMIZERS)
    lr: float = key(
        0.1, "learning rate at the height of the schedule, for lr_batch images", least=0
    )
    lr_batch: Optional[int] = key(
        None,
        "images per weight update that lr is stated for: lr is multiplied by the images per "
        "update / lr_batch; null: lr as it is",
        least=1,
    )
    weight_decay: float = key(
        1e-4, "decay of weights; norms' scales and shifts, biases have none", least=0
    )
    proxy_weight_decay: Optional[float] = key(
        None, "decay of Proxy Norm's proxy parameters; null: weight_decay", least=0
    )
    momentum: Optional[float] = key(None, "sgd..., rmsprop...: momentum; null: 0.9", least=0)
    nesterov: Optional[bool] = key(None, "sgd...: Nesterov's momentum; null: false")
    alpha: Optional[float] = key(
        None,
        "rmsprop...: decay of the mean of squares, per weight update; null: 0.99",
        least=0,
        most=1,
    )
    betas: Optional[List[float]] = key(
        None, "adam, adamw, lamb: decay of mean and of mean of squares; null: [0.9, 0.999]"
    )
    eps: Optional[float] = key(
        None,
        "rmsprop..., adam, adamw, lamb: added to the root (rmsprop_tf: under it); null: 1e-8",
        least=0,
    )
    max_weight_norm: Optional[float] = key(
        None, "lamb: upper limit of a tensor's norm in its trust ratio; null: 65500", above=0
    )
    accumulation: str = key(
        "float32", "type in which gradients are accumulated", choices=("float32", "float16")
    )
    loss_scaling: float = key(
        1.0,
        "factor on the loss in the backward pass, undone in the update; at the run's end",
        above=0,
    )
    initial_loss_scaling: Optional[float] = key(
        None,
        "loss scaling at the start, doubled at equal intervals (each halves the velocity of sgd, "
        "though not of sgd_combined); null: loss_scaling",
        above=0,
    )
    auto_loss_scaling: bool = key(
        False, "let the device adjust the loss scaling to the gradients (needs 16 bit activations)"
    )


@dataclasses.dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    name: str = key(
        "cosine",
        "course of the learning rate",
        choices={
            "cosine": "to zero at the last update",
            "step": "",
            "exponential": "",
            "constant": "",
        },
    )
    warmup_epochs: float = key(
        0.0, "epochs of linear rise from zero, a factor on the schedule", least=0
    )
    decay: Optional[float] = key(
        None, "step: factor at each of step_epochs; exponential: factor every decay_epochs", above=0
    )
    decay_epochs: Optional[float] = key(
        None,
        "exponential: epochs in which the learning rate falls by decay, e.g. 2.4; null: 1",
        above=0,
    )
    step_epochs: Optional[List[float]] = key(
        None, "step: epochs after which the learning rate is multiplied by decay"
    )
    interval_epochs: Optional[float] = key(
        None,
        "epochs between changes of the learning rate (warm-up aside), e.g. 2.4 for a staircase; "
        "null: changed at every host call",
        above=0,
    )


@dataclasses.dataclass
class TrainingConfig:
    """The loop."""

    epochs: int = key(MISSING, "passes over the training images", least=1)
    label_smoothing: float = key(
        0.0, "share of the target spread over all classes, 0 to 1", least=0, most=1
    )
    mixup_alpha: float = key(
        0.0, "mix-up: coefficients are drawn from Beta(alpha, alpha); 0: no mix-up", least=0
    )
    cutmix_lambda_low: float = key(
        1.0,
        "cut-mix: smallest share of an image that stays, drawn uniformly from low to high",
        least=0,
        most=1,
    )
    cutmix_lambda_high: float = key(
        1.0, "cut-mix: largest share that stays; low = 1: no cut-mix", least=0, most=1
    )
    cutmix_boxes: str = key(
        "uniform",
        "cut-mix: where boxes lie",
        choices={
            "uniform": "anywhere within the image, alike",
            "clipped": "centres anywhere, moved inside: more at the edges, as published",
        },
    )
    cutmix_disable_prob: float = key(0.0, "cut-mix: share of images left whole", least=0, most=1)
    checkpoint_every: Optional[int] = key(
        None, "host calls between checkpoints within an epoch; null: after each epoch only", above=0
    )
    checkpoint_minutes: Optional[float] = key(
        None, "minutes between checkpoints within an epoch; null: after each epoch only", above=0
    )
    patience: float = key(
        600.0,
        "seconds that the processes of a run wait for one that does not answer; then all end",
        least=1,
        most=86400,
    )
    keep_checkpoints: int = key(
        2, "how many of the last checkpoints are kept, beside the best", least=1
    )
    validate: str = key(
        "epoch",
        "when validation images are looked at",
        choices={
            "epoch": "after each validate_every epochs, and the last",
            "end": "the last",
            "never": "",
        },
    )
    validate_every: int = key(1, "epochs between validations", least=1)
    average: str = key(
        "none",
        "average of the weights, validated beside them",
        choices={"none": "", "exponential": "", "mean": "of equals"},
    )
    average_decay: float = key(
        0.97,
        "exponential: weight of the old average at each reading of the weights",
        least=0,
        most=1,
    )
    average_from_epoch: int = key(1, "first epoch whose weights enter the average", least=1)
    weights_every: Optional[int] = key(
        None,
        "host calls between readings of the weights, for the average and for the diagnosis of an "
        "overflow; reading stops the IPUs; null: once an epoch",
        least=1,
    )
    analyse_every: Optional[int] = key(
        None, "epochs between records of the power after each normalization; null: none", least=1
    )
    init_from: Optional[str] = key(
        None,
        "what weights the run starts from: a checkpoint, e.g. runs/half/last.pt, or a file of "
        "weights, .pt, .pth or .safetensors; torchvision:FILE or timm:FILE where they have theirs",
    )
    new_head: bool = key(
        False,
        "draw the classifier anew and take everything else from init_from, whose weights may be of "
        "another number of classes",
    )
    trainable: List[str] = key(
        [], "layers that train, by name or its beginning, e.g. [layer4, fc]; []: all"
    )
    line_seconds: float = key(
        60.0,
        "without a terminal: seconds between lines that say how far the epoch is; 0: a line an "
        "epoch only",
        least=0,
    )
    wandb: Optional[str] = key(
        None, "project of Weights & Biases that the run is also logged to; null: not logged"
    )


@dataclasses.dataclass
class RunConfig:
    """One run, as written in ``configs/*.yaml``.

    Attributes:
        environment: what was written in the place of values that came from environment variables,
            by key; no key itself.
    """

    environment = cast("Mapping[str, Any]", MappingProxyType({}))  # not annotated: no field

    name: str = key(MISSING, "name of the run and of its folder")
    runs: str = key("runs", "folder that holds the runs' folders")
    seed: int = key(0, "seed of weights, shuffling and device randomness")
    model: ModelConfig = section(ModelConfig, "the network")
    data: DataConfig = section(DataConfig, "the images")
    ipu: IPUConfig = section(IPUConfig, "layout over IPUs")
    optimizer: OptimizerConfig = section(OptimizerConfig, "weight update")
    schedule: ScheduleConfig = section(ScheduleConfig, "learning rate over the run")
    training: TrainingConfig = section(TrainingConfig, "the loop")


def documentation() -> List[Key]:
    """Return every key of a run with its type, default and meaning."""
    return described(RunConfig)
