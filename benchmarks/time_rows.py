"""Measured times: single operators that the Poplar compiler reported, and whole programs."""

from __future__ import annotations

import csv
import dataclasses
import functools
from typing import Callable, Dict, Iterator, List, Tuple

import memory_rows
from memory_rows import DATA, Row
from study_program import study_footprint

from ipu_proxynorm import memory
from ipu_proxynorm.config import RunConfig, load
from ipu_proxynorm.memory.cycles import Speeds, Work, cycles
from ipu_proxynorm.memory.throughput import throughput_by
from ipu_proxynorm.prediction.footprint import Footprint, footprint

ROOT = DATA.parents[1]
# Results of the reductions, from the shapes and dimensions in poplibs' tests/CMakeLists.txt.
_RESULTS = {"bert_reduce_0": 2048, "bert_reduce_1": 2048, "bert_reduce_2": 128}
TARGETS = {"IpuModel1": "mk1", "IpuModel2": "mk2"}


@dataclasses.dataclass(frozen=True)
class Operator:
    """One benchmark of poplibs: the work of each of its passes, and the compiler's cycles.

    Attributes:
        name: the name of the benchmark.
        kind: convolution, depthwise, matmul, dense layer, pooling or reduction.
        group: what is held out together.
        chip: mk1 or mk2.
        works: one entry a kind of pass.
        float32: whether its data are float32.
        measured: cycles of all passes together.
    """

    name: str
    kind: str
    group: str
    chip: str
    works: Tuple[Work, ...]
    float32: bool
    measured: float

    def predicted(self, speed: Speeds) -> float:
        """Return the predicted cycles."""
        tiles = memory.CHIPS[self.chip].tiles
        return sum(cycles(work, tiles, speed, self.float32, False) for work in self.works)


def read_operators() -> List[Operator]:
    """Return every row of ``data/ipu_conv_bench.csv`` and of ``data/poplibs_bench.csv``."""
    found = []
    with open(DATA / "ipu_conv_bench.csv") as file:
        found += [_convolution(raw) for raw in csv.DictReader(file)]
    with open(DATA / "poplibs_bench.csv") as file:
        for raw in csv.DictReader(file):
            found += _single(raw)
    return found


def _convolution(raw: Dict[str, str]) -> Operator:
    height, width = (int(v) for v in raw["k"].split("x"))
    channels, groups = int(raw["cin"]), int(raw["groups"])
    inputs, outputs, weights = (int(raw[k]) for k in ("in_el", "out_el", "w_el"))
    kind = "depthwise" if channels == 1 and groups > 1 else "convolution"
    work = Work(
        kind,
        passes=3,
        macs=outputs * channels * height * width,
        elements=inputs + outputs,
        weights=weights,
        channels=channels,
        outputs=int(raw["cout"]),
        window=height * width,
    )
    chip, network = TARGETS[raw["target"]], raw["name"].split("_")[0]
    return Operator(raw["name"], kind, network, chip, (work,), False, float(raw["cycles"]))


def _single(raw: Dict[str, str]) -> Iterator[Operator]:
    kind, shape, chip = raw["kind"], raw["shape"], TARGETS[raw["target"]]
    measured = float(raw["cycles"])
    if kind == "matrix product":
        # The benchmark adds the product to a matrix that exists (beta = 1).
        rows, inner, columns = (int(v) for v in shape.split("x"))
        works: Tuple[Work, ...] = (_product(rows, inner, columns, accumulated=True),)
        group = f"{rows} rows"
        yield Operator(raw["name"], "matmul", group, chip, works, False, measured)
    elif kind.startswith("dense layer"):
        sizes, dtype = shape.split()
        batch, inputs, outputs = (int(v) for v in sizes.split("x"))
        works = (
            _product(batch, inputs, outputs),
            _product(batch, outputs, inputs, rearranged=True),
            _product(inputs, batch, outputs, rearranged=True),
        )
        group = f"dense {outputs}"
        yield Operator(raw["name"], "dense layer", group, chip, works, dtype == "float", measured)
    elif kind.startswith("max_pool"):
        given = {k: int(v) for k, v in (part.split("=") for part in shape.split())}
        size = (given["field"] + 2 * given["padding"] - 3) // given["stride"] + 1
        channels = given["channels"] * given["batch"]
        before, after = given["field"] ** 2 * channels, size**2 * channels
        works = (Work("pooling", elements=before, weights=after, window=9),) * 2
        group = f"stride {given['stride']}"
        yield Operator(raw["name"], "pooling", group, chip, works, False, measured)
    elif kind == "reduction":
        elements = int(shape.partition("=")[2])
        results = _RESULTS.get(raw["name"], 1)
        works = (Work("reduction", weights=results, reductions=1, largest=2 * elements),)
        group = raw["name"].split("_")[0]
        yield Operator(raw["name"], "reduction", group, chip, works, False, measured)


def _product(
    rows: int, inner: int, columns: int, rearranged: bool = False, accumulated: bool = False
) -> Work:
    return Work(
        "matmul",
        macs=rows * inner * columns,
        shape=(rows, inner, columns),
        rearranged=rearranged,
        accumulated=accumulated,
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """A whole program whose images per second were measured on IPUs.

    Attributes:
        name: in a few words.
        family: what is held out together.
        capture: the capture of its network, cut as published.
        layout: as published.
        measured: images per second of all replicas.
    """

    name: str
    family: str
    capture: memory.Capture
    layout: memory.Layout
    measured: float

    def predicted(self, speed: Speeds) -> float:
        """Return the predicted images per second."""
        return throughput_by(self.capture, self.layout, speed)


# The rows of ``ipu_known_fits.csv`` whose splits and layout a measured program had.
_LAID_OUT_AS = {
    "ResNet-50 bn": "training/configs.yml:mk2_resnet50_mlperf_pod16_bs20",
    "ResNeXt-101 32x4d gn32": "training/configs.yml:mk2_resnext101_16ipus",
    "EfficientNet-B4 G16 gn4": "vision/cnns/pytorch/train/configs.yml:efficientnet-b4-g16-gn-pod16",
}


@functools.lru_cache(maxsize=None)
def read_programs() -> Tuple[Program, ...]:
    """Return every row of ``data/ipu_throughput.csv``."""
    rows = memory_rows.read_rows()
    with open(DATA / "ipu_throughput.csv") as file:
        return tuple(_program(raw, rows) for raw in csv.DictReader(file))


def _program(raw: Dict[str, str], rows: List[Row]) -> Program:
    row = next(r for r in rows if r.training and r.source.endswith(_LAID_OUT_AS[raw["model"]]))
    layout = dataclasses.replace(
        memory_rows.layout(row),
        chip=raw["chip"],
        precision=raw["precision"],
        replicas=int(raw["replicas"]),
        gradient_accumulation=int(raw["gradient_accumulation"]),
    )
    captured = memory_rows.capture(row).with_micro_batch(int(raw["micro_batch"]))
    name = f"{raw['model']}, {raw['ipus']} {raw['chip']}, x{raw['gradient_accumulation']}"
    family = raw["model"].split("-")[0]
    return Program(name, family, captured, layout, float(raw["images_per_s"]))


def _study(recipe_footprint: Callable[[RunConfig], Footprint]) -> Tuple[Program, ...]:
    rows = {row.source.rpartition(":")[2]: row for row in memory_rows.read_rows()}
    found = []
    with open(ROOT / "docs" / "published_results.csv") as file:
        for raw in csv.DictReader(file):
            stem = raw["configuration"].partition("_16IPU")[0].lower().replace("-", "_")
            one = recipe_footprint(
                load(ROOT / "configs" / "imagenet" / f"efficientnet_{stem}.yaml")
            )
            measured = float(raw["images_per_second"])
            stable = rows[raw["configuration"]].layout.stable_norm
            layout = dataclasses.replace(one.layout, stable_norm=stable)
            found.append(Program(stem, "EfficientNet", one.capture, layout, measured))
    return tuple(found)


@functools.lru_cache(maxsize=None)
def published_study() -> Tuple[Program, ...]:
    """Return the 30 published EfficientNets with their published images/s.

    As TensorFlow ran them; see `study_program`. Norms have the stable form that was published.
    """
    return _study(study_footprint)


@functools.lru_cache(maxsize=None)
def our_study() -> Tuple[Program, ...]:
    """Return the same as our recipes run them, with Proxy Norm as it is here."""
    return _study(footprint)
