"""Configurations known to have run on real IPUs, as networks and layouts of the prediction."""

from __future__ import annotations

import csv
import dataclasses
import functools
import pathlib
import re
from typing import Dict, Iterator, List, Optional, Tuple

import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet

from ipu_proxynorm import memory
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory.convolutions import needed
from ipu_proxynorm.memory.geometry import Geometry, forward_pass, input_pass, weight_pass
from ipu_proxynorm.models import create_model

DATA = pathlib.Path(__file__).parent / "data"


@dataclasses.dataclass(frozen=True)
class Row:
    """One published configuration.

    Attributes:
        source: where it was published.
        model: the network, as published.
        family: what is held out together: ResNet-50, ResNeXt-101, or EfficientNet.
        norm: norm spec.
        group_dim: channels of each group in EfficientNet's grouped convolutions.
        expansion: EfficientNet's.
        image_size: pixels.
        training: or inference.
        micro_batch: images.
        splits: published names of split points.
        is_maximum: said or seen to be the largest micro-batch that fits.
        is_validation: whether it belongs to the published EfficientNet study; never calibrated on.
        layout: as far as published.
        same_ipu: all pipeline stages are on one IPU.
    """

    source: str
    model: str
    family: str
    norm: str
    group_dim: int
    expansion: int
    image_size: int
    training: bool
    micro_batch: int
    splits: Tuple[str, ...]
    is_maximum: bool
    is_validation: bool
    layout: memory.Layout
    same_ipu: bool

    @property
    def name(self) -> str:
        """Return the row in a few words."""
        kind = "training" if self.training else "inference"
        return f"{self.model} {self.norm} {kind} mb{self.micro_batch} [{self.source[-40:]}]"


def read_rows() -> List[Row]:
    """Return every row of ``data/ipu_known_fits.csv``."""
    with open(DATA / "ipu_known_fits.csv") as file:
        return [_row(raw) for raw in csv.DictReader(file)]


def _row(raw: Dict[str, str]) -> Row:
    training = raw["mode"] == "training"
    splits = tuple(raw["splits"].split())
    is_benchmark = "enchmarks" in raw["source"] and not training
    same_ipu = "ONE IPU" in raw["notes"]
    return Row(
        source=raw["source"],
        model=raw["model"],
        family=raw["model"].split("-")[0],
        norm=raw["norm"],
        group_dim=int(raw["group_dim"] or 1),
        expansion=int(raw["expand_ratio"] or 6),
        image_size=int(raw["image_size"]),
        training=training,
        micro_batch=int(raw["micro_batch_size"]),
        splits=splits,
        is_maximum="maximum" in raw["tightness"],
        is_validation=raw["use"] == "validation",
        layout=memory.Layout(
            precision=raw["precision"],
            optimizer=_optimizer(raw) if training else None,
            optimizer_location=_location(raw["optimiser_state"]),
            replicas=int(raw["replicas"]),
            gradient_accumulation=_accumulation(raw),
            schedule=_schedule(raw),
            recomputation=_recomputation(raw, same_ipu),
            keeps_last_segment=raw["recomputation"].startswith("manual"),
            checkpoints=_checkpoints(raw["recomputation"]),
            available_memory_proportion=_proportions(raw["available_memory_proportion"]),
            # The commands of the inference benchmarks, where the notes leave it out: all set half
            # partials, TensorFlow's and ResNeXt's 8-bit images too.
            half_partials="half partials" in raw["notes"] or is_benchmark,
            io_tiles=int(raw["io_tiles"]),
            exchange=next(
                (e for e in memory.EXCHANGES if f"exchange={e}" in raw["notes"]), "cycles"
            ),
            eight_bit_io="eight_bit_io" in raw["notes"]
            or (is_benchmark and (raw["framework"] == "TF1" or "ResNeXt" in raw["model"])),
            stable_norm="stable norm" in raw["notes"],
        ),
        same_ipu=same_ipu,
    )


def _optimizer(raw: Dict[str, str]) -> memory.OptimizerMemory:
    """TensorFlow's accumulators and states have the variable's type, PopTorch's are float32."""
    name = raw["optimiser"].lower()
    known = next(
        (n for n in ("sgd_combined", "rmsprop", "lars", "sgd", "momentum") if n in name), name
    )
    known = {"momentum": "sgd"}.get(known, known)
    weight = 2 if raw["precision"] == "16.16" else 4
    is_tensorflow = raw["framework"].startswith("TF")
    state = weight if is_tensorflow else 4
    if raw["optimiser_state"].startswith("off-chip (fp32"):
        state = 4
    momentum = "momentum" in name or known == "lars" or "rmsprop" in name
    return memory.optimizer_memory(
        known,
        state_bytes=state,
        accumulator_bytes=weight if known == "sgd_combined" else state,
        momentum=momentum,
    )


def _location(text: str) -> str:
    if "sharding" in text:
        return "sharded"
    return "off-chip" if text.startswith("off-chip") else "on-chip"


def _accumulation(raw: Dict[str, str]) -> int:
    text = raw["gradient_accumulation"]
    if text.isdigit():
        return int(text)
    batch = re.fullmatch(r"global batch (\d+)", text)
    if batch is None:
        return 1
    return max(1, int(batch[1]) // (int(raw["micro_batch_size"]) * int(raw["replicas"])))


def _schedule(raw: Dict[str, str]) -> str:
    return {"Grouped": "grouped", "Sequential": "sequential"}.get(raw["schedule"], "pipelined")


def _recomputation(raw: Dict[str, str], same_ipu: bool) -> str:
    """Return the kind of recomputation.

    ``RecomputationType::Standard`` chooses by itself and overrides the marks of the row's
    convolutions and norms (PopART 2.0.0, ``recompute.cpp:117``); ``manual`` is ``RecomputeAll``,
    which keeps what follows the last mark (PopART 2.3.0, ``recompute.cpp:25``).
    """
    text = raw["recomputation"]
    if text.startswith("auto (Standard)"):
        return "standard"
    if text.startswith("manual"):
        return "checkpoints"
    if text.startswith("stage"):
        return "stage"
    return "none"


def _checkpoints(text: str) -> Tuple[str, ...]:
    """Return the layers whose outputs a configuration keeps, as published."""
    return () if text.startswith("auto") else tuple(text.partition(":")[2].split())


def _proportions(text: str) -> Tuple[float, ...]:
    """Return a proportion for each IPU, of the pairs (convolutions, products) of each stage."""
    values = [float(v) for v in text.replace("default", "").split()]
    return tuple(values[::2]) if len(values) > 1 else tuple(values)


def build(row: Row) -> nn.Module:
    """Return the network of a row.

    The published Proxy Norm keeps only its input for the backward pass and computes its statistics
    in the weight update: LN+PN is captured as the LN that is left.
    """
    norm = row.norm.replace("+pn", "")
    if row.model.startswith("EfficientNet"):
        number = row.model[-1]
        return create_model(
            f"efficientnet_b{number}",
            norm=norm,
            num_classes=1000,
            group_dim=row.group_dim,
            expansion=row.expansion,
        )
    layer = nn.BatchNorm2d if norm == "bn" else functools.partial(nn.GroupNorm, int(norm[2:]))
    shapes = {
        "ResNet-50": ([3, 4, 6, 3], 1, 64),
        "ResNeXt-101 (32x4d)": ([3, 4, 23, 3], 32, 4),
        "ResNeXt-101 (32x8d)": ([3, 4, 23, 3], 32, 8),
    }
    depths, groups, width = shapes[row.model]
    return ResNet(Bottleneck, depths, groups=groups, width_per_group=width, norm_layer=layer)  # type: ignore[arg-type]


@functools.lru_cache(maxsize=None)
def _network_capture(
    model: str, norm: str, group_dim: int, expansion: int, size: int, training: bool, half: bool
) -> memory.Capture:
    row = next(
        r
        for r in read_rows()
        if (r.model, r.norm.replace("+pn", ""), r.group_dim, r.expansion)
        == (model, norm, group_dim, expansion)
    )
    with torch.device("meta"):
        network = build(row)
    images = torch.empty(1, 3, size, size, device="meta")
    precision = "16.16" if half else "32.32"
    return memory.capture(network, [images], training=training, precision=precision)


def capture(row: Row) -> memory.Capture:
    """Return the capture of a row's network, cut and sized as published."""
    captured = _network_capture(
        row.model,
        row.norm.replace("+pn", ""),
        row.group_dim,
        row.expansion,
        row.image_size,
        row.training,
        row.layout.precision.startswith("16"),
    ).with_micro_batch(row.micro_batch)
    if row.splits and row.training:
        captured = captured.with_splits(_splits(row))
        if row.same_ipu:
            ipus = (0,) * captured.stages
            captured = dataclasses.replace(captured, stage_ipus=ipus)
    return captured


def layout(row: Row) -> memory.Layout:
    """Return the layout with its checkpoints by the names of the network built here."""
    given = row.layout
    if not given.checkpoints:
        return given
    return dataclasses.replace(given, checkpoints=tuple(_checkpoint_layers(row)))


def _checkpoint_layers(row: Row) -> Iterator[str]:
    with torch.device("meta"):
        network = build(row)
    names = [name for name, _ in network.named_modules()]
    blocks = [name for name in names if re.fullmatch(r"layer\d\.\d+|blocks\.\d\.\d+", name)]
    for text in row.layout.checkpoints:
        addition = re.fullmatch(r"add(?:[/_](\d+))?", text)
        if addition is not None and row.family == "EfficientNet":
            added = [n for n in blocks if network.get_submodule(n).residual]
            yield added[int(addition[1] or 0)]
        elif addition is not None:
            yield blocks[int(addition[1] or 0)]
        else:
            name = re.sub(r"downsample[_/]", "downsample.", text).replace("/", ".")
            if name in names:
                yield name


def _splits(row: Row) -> List[str]:
    """Return the layers of the network built here at which published stages begin."""
    if row.family == "EfficientNet":
        with torch.device("meta"):
            network = build(row)
        return [_efficientnet_split(split, network) for split in row.splits]
    return [_resnet_split(split) for split in row.splits]


def _efficientnet_split(split: str, network: nn.Module) -> str:
    """``block3b`` (TensorFlow), ``_blocks/4`` (counted through) or ``blocks/3/0/conv_pw``."""
    flat = re.fullmatch(r"_blocks/(\d+)(/_project_conv)?", split)
    if flat is not None:
        blocks = [n for n, _ in network.named_modules() if re.fullmatch(r"blocks\.\d\.\d+", n)]
        return blocks[int(flat[1])] + (".conv_pwl" if flat[2] else "")
    lettered = re.fullmatch(r"block(\d)([a-z])", split)
    if lettered is not None:
        return f"blocks.{int(lettered[1]) - 1}.{ord(lettered[2]) - ord('a')}"
    return split.replace("/", ".")


def _resnet_split(split: str) -> str:
    """``layer1/2`` begins there; the others name a block's last ReLU: the next block begins.

    TensorFlow 1 counts the groups b1 ... b4 and their blocks from 0, Keras conv2_block1 ... .
    """
    if split.startswith("layer"):
        return split.replace("/", ".")
    first = re.fullmatch(r"b(\d)/(\d+)/relu", split)
    if first is not None:
        group, block = int(first[1]), int(first[2])
    else:
        keras = re.fullmatch(r"conv(\d)_block(\d+)_out", split)
        assert keras is not None, split
        group, block = int(keras[1]) - 1, int(keras[2]) - 1
    last = {1: 2, 2: 3, 3: 5, 4: 2}[group]
    return f"layer{group + 1}.0" if block == last else f"layer{group}.{block + 1}"


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A single convolution that the Poplar compiler reported: forward, backward, weight update.

    Attributes:
        network: of which it is a layer.
        name: the name of the benchmark.
        planned: the temporaries expected of its three passes as poplibs plans them, bytes.
        rest: reported bytes less input, output, weight and their gradients.
    """

    network: str
    name: str
    planned: float
    rest: float


def read_convolutions() -> List[Convolution]:
    """Return every row of ``data/ipu_conv_bench.csv`` (half data, float partials, batch 4)."""
    with open(DATA / "ipu_conv_bench.csv") as file:
        return [_convolution(raw) for raw in csv.DictReader(file)]


def _convolution(raw: Dict[str, str]) -> Convolution:
    def places(key: str) -> int:
        height, width = (int(v) for v in raw[key].split("x"))
        return height * width

    chip = memory.CHIPS["mk1" if raw["target"] == "IpuModel1" else "mk2"]
    sizes = Geometry(
        images=int(raw["batch"]),
        groups=int(raw["groups"]),
        channels=int(raw["cin"]),
        outputs=int(raw["cout"]),
        window=places("k"),
        field_in=places("field"),
        field_out=places("out"),
    )
    products = [of(sizes) for of in (forward_pass, input_pass, weight_pass)]
    tensors = 2 * 2 * sum(int(raw[key]) for key in ("in_el", "out_el", "w_el"))
    return Convolution(
        network=raw["name"].split("_")[0],
        name=raw["name"],
        planned=float(
            needed(products, chip.tiles, 0.6 * chip.tile_bytes, 2, half_partials=False).mean()
        ),
        rest=float(raw["total_bytes"]) - tensors,
    )


@dataclasses.dataclass(frozen=True)
class Product:
    """A single matrix product, added to a matrix, that the Poplar compiler reported.

    Attributes:
        tensors: bytes of both factors, the product and the matrix.
        planned: the temporaries expected as poplibs plans it, bytes.
        measured: reported bytes.
    """

    tensors: int
    planned: float
    measured: float


def read_products() -> List[Product]:
    """Return the matrix products of ``data/poplibs_bench.csv`` (half data, float partials)."""
    with open(DATA / "poplibs_bench.csv") as file:
        return [_product(raw) for raw in csv.DictReader(file) if raw["kind"] == "matrix product"]


def _product(raw: Dict[str, str]) -> Product:
    rows, inner, columns = (int(size) for size in raw["shape"].split()[0].split("x"))
    chip = memory.CHIPS["mk1" if raw["target"] == "IpuModel1" else "mk2"]
    # poplibs loads either factor as weights.
    planned = [
        needed(
            [forward_pass(Geometry(first, 1, inner, last))],
            chip.tiles,
            0.6 * chip.tile_bytes,
            2,
            half_partials=False,
        ).mean()
        for first, last in ((rows, columns), (columns, rows))
    ]
    tensors = 2 * (rows * inner + inner * columns + 2 * rows * columns)
    return Product(tensors, float(min(planned)), float(raw["total_bytes"]))


def reason_unbuildable(row: Row) -> Optional[str]:
    """Return why a row's network cannot be built or cut here; None where it can."""
    try:
        capture(row)
    except (KeyError, UserError) as error:
        return f"{type(error).__name__}: {error}"
    return None
