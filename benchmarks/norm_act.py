"""Time and memory of norm and activation with Proxy Norm, and without it, and of others' layers.

    python benchmarks/norm_act.py                      # every table, about twenty minutes
    python benchmarks/norm_act.py --tables square networks moments
    python benchmarks/norm_act.py --markdown docs/norm_benchmarks.md

Times are CPU times of one thread: forward and backward of one layer, or of a training step. All
candidates of a row take turns within one process, in an order drawn anew each time, so that
whatever else the machine does meets them alike; each turn is a run untimed and one timed; a cell is
the median, with the quartiles in brackets. Ratios are to the norm without Proxy Norm, of medians
and of the fastest runs, which say more where others keep the machine busy. Bytes are the
activations that autograd keeps for the backward pass, the output included, each storage once.

The row "registry package" is ``proxynorm`` 0.1.0, which needs scipy beside it:
``pip install --no-deps proxynorm==0.1.0``; without it the row says that it is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import math
import platform
import random
import statistics
import time
from itertools import chain
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import efficientnet_b0
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops.misc import Conv2dNormActivation

from ipu_proxynorm.norm import create_norm_act, share_moments
from ipu_proxynorm.norm.fused import fused_norm_act
from ipu_proxynorm.norm.modules import ProxyNormAct

Shape = Tuple[int, int, int, int]
SQUARE: List[Shape] = [
    (4, 64, 56, 56),
    (4, 256, 56, 56),
    (4, 512, 28, 28),
    (4, 1024, 14, 14),
    (4, 2048, 7, 7),
]
OTHER: List[Shape] = [(4, 96, 112, 112), (4, 672, 14, 14)]
SPEC = "gn4"
ACTIVATIONS: Dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}
BASE = "GN + φ"


class Spread(NamedTuple):
    """Minimum, first quartile, median and third quartile of CPU times, in milliseconds."""

    fastest: float
    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}–{self.high:.2f}]"


def interleaved(runs: Dict[str, Callable[[], object]], seconds: float) -> Dict[str, Spread]:
    """Time every run in turn, for about ``seconds`` in all, three turns at least."""
    for run in runs.values():
        run()
        run()
    times: Dict[str, List[float]] = {name: [] for name in runs}
    end = time.monotonic() + seconds
    while time.monotonic() < end or len(next(iter(times.values()))) < 3:
        for name, run in random.sample(list(runs.items()), len(runs)):
            run()  # untimed: what the one before left in caches and heap is not this one's
            start = time.process_time_ns()
            run()
            times[name].append((time.process_time_ns() - start) / 1e6)
    spreads = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        spreads[name] = Spread(min(values), low, median, high)
    return spreads


def saved_bytes(forward: Callable[[], Tensor]) -> int:
    """Bytes kept for the backward pass, and of the output, each storage once."""
    kept: Dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        keep(forward())
    return sum(kept.values())


def geometric_mean(values: Sequence[float]) -> float:
    """Return the geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


class NaiveProxyNorm(nn.Module):
    """Proxy Norm as one writes it down: 200 sampled quantiles, everything left to autograd."""

    def __init__(self, channels: int, act: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.proxy_weight = nn.Parameter(torch.zeros(channels))
        self.proxy_bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("one", torch.ones(channels))
        self.act = ACTIVATIONS[act]
        levels = 2 * (torch.arange(200) + 0.5) / 200 - 1
        self.register_buffer("quantiles", (2**0.5 * torch.erfinv(levels)).unsqueeze(1))

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, H, W)."""
        y = F.group_norm(x, 4, self.one)  # without a weight torch 2.0's backward may crash
        shape = (1, -1, 1, 1)
        z = self.act(y * self.weight.view(shape) + self.bias.view(shape))
        proxy = self.quantiles * (1 + self.proxy_weight) + self.proxy_bias
        proxy = self.act(proxy * self.weight + self.bias)
        inv_std = (proxy.var(0, unbiased=False) + 0.03).rsqrt()
        return (z - proxy.mean(0).view(shape)) * inv_std.view(shape)


def registry_package(channels: int, act: str) -> Optional[nn.Module]:
    """Return GroupNorm and the registry package's layer, or None where it is not installed."""
    try:
        package = importlib.import_module("proxynorm")
    except ModuleNotFoundError:
        return None
    layer = package.ProxyNorm2d(channels, act=nn.ReLU() if act == "relu" else nn.SiLU())
    norm = nn.GroupNorm(4, channels)
    nn.init.ones_(norm.weight.requires_grad_(False))
    return nn.Sequential(norm, layer)


class Cached(nn.Module):
    """Our layer with its moments at hand, as all layers of a network but the first have them."""

    def __init__(self, layer: ProxyNormAct) -> None:
        super().__init__()
        self.layer = layer
        self.prepared = layer.prepare()

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (N, C, H, W)."""
        layer = self.layer
        return fused_norm_act(
            x,
            layer.num_groups,
            layer.moment_parameters,
            layer.activation,
            self.prepared,
            eps=layer.eps,
            recompute=layer.recompute,
        )


def candidates(channels: int, act: str) -> Dict[str, Optional[nn.Module]]:
    """Return what is compared, by the name of its row."""
    ours = create_norm_act(f"{SPEC}+pn", channels, act)
    lean = create_norm_act(f"{SPEC}+pn", channels, act, recompute=True)
    assert isinstance(ours, ProxyNormAct)
    assert isinstance(lean, ProxyNormAct)
    rows: Dict[str, Optional[nn.Module]] = {
        BASE: create_norm_act(SPEC, channels, act),
        "BN + φ": create_norm_act("bn", channels, act),
        "naive sampled": NaiveProxyNorm(channels, act),
        "registry package": registry_package(channels, act),
        "ours, moments shared": Cached(ours),
        "ours, moments each call": ours,
    }
    if act != "relu":  # which keeps nothing that could be recomputed
        rows["ours, shared, recompute"] = Cached(lean)
    return rows


def run_block(
    shape: Shape, act: str, layout: torch.memory_format, seconds: float
) -> Tuple[Dict[str, Spread], Dict[str, int]]:
    """Time forward and backward of every candidate, and count the bytes it keeps."""
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_()
    grad = torch.randn(shape).contiguous(memory_format=layout)

    def step(module: nn.Module) -> None:
        x.grad = None
        module.zero_grad(set_to_none=True)
        module(x).backward(grad)

    modules = {n: m for n, m in candidates(shape[1], act).items() if m is not None}
    times = interleaved({n: lambda m=m: step(m) for n, m in modules.items()}, seconds)
    return times, {n: saved_bytes(lambda m=m: m(x)) for n, m in modules.items()}


def block_table(
    title: str, shapes: List[Shape], act: str, layout: torch.memory_format, seconds: float
) -> List[str]:
    """Return a table of candidates by shapes, with ratios to GN + φ."""
    name = "channels_last" if layout == torch.channels_last else "NCHW"
    lines = [f"### {title}: {act}, {name}", ""]
    heads = [f"{'×'.join(map(str, shape))}, ms" for shape in shapes]
    ratios = ["medians, geom. mean", "fastest, geom. mean", "bytes kept"]
    lines.append("| | " + " | ".join([*heads, *ratios]) + " |")
    lines.append("|---|" + "---|" * (len(shapes) + len(ratios)))
    results = [run_block(shape, act, layout, seconds) for shape in shapes]
    for row in candidates(4, act):
        if row not in results[0][0]:
            lines.append(f"| {row} | not installed |" + " |" * (len(shapes) + 2))
            continue
        cells = [str(times[row]) for times, _ in results]
        ratio = geometric_mean([t[row].median / t[BASE].median for t, _ in results])
        best = geometric_mean([t[row].fastest / t[BASE].fastest for t, _ in results])
        memory = geometric_mean([b[row] / b[BASE] for _, b in results])
        cells += [f"{value:.2f} ×" for value in (ratio, best, memory)]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return [*lines, ""]


class NormBottleneck(Bottleneck):
    """ResNet's bottleneck over norm and activation as one unit."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to x (N, C, H, W)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = self.bn2(self.conv2(self.bn1(self.conv1(x))))
        return F.relu(self.bn3(self.conv3(out)) + identity)


def resnet50(norm: Callable[..., nn.Module]) -> nn.Module:
    """Return ResNet-50 with norms made by norm(channels, act, apply_act)."""
    model = ResNet(NormBottleneck, [3, 4, 6, 3])
    model.bn1, model.relu = norm(64, "relu"), nn.Identity()
    for module in model.modules():
        if isinstance(module, NormBottleneck):
            module.bn1 = norm(module.bn1.num_features, "relu")
            module.bn2 = norm(module.bn2.num_features, "relu")
            module.bn3 = norm(module.bn3.num_features, "relu", apply_act=False)
            if module.downsample is not None:
                channels = module.downsample[1].num_features
                module.downsample[1] = norm(channels, "relu", apply_act=False)
    return model


def efficientnet(norm: Callable[..., nn.Module]) -> nn.Module:
    """Return EfficientNet-B0 with norms made by norm(channels, act, apply_act)."""
    model = efficientnet_b0(stochastic_depth_prob=0.0, dropout=0.0)
    for module in model.modules():
        if isinstance(module, Conv2dNormActivation):
            activated = len(module) == 3
            module[1] = norm(module[1].num_features, "silu", apply_act=activated)
            if activated:
                module[2] = nn.Identity()
    return model


NETWORKS = {"ResNet-50": (resnet50, "gn4"), "EfficientNet-B0": (efficientnet, "ln")}


def naive_norm(spec: str) -> Callable[..., nn.Module]:
    """Return a maker of naive layers, plain norms where no activation follows."""

    def make(channels: int, act: str, apply_act: bool = True) -> nn.Module:
        if apply_act:
            return NaiveProxyNorm(channels, act)
        return create_norm_act(f"{spec}+pn", channels, act, apply_act=False)

    return make


def our_norm(spec: str) -> Callable[..., nn.Module]:
    """Return a maker of our layers."""

    def make(channels: int, act: str, apply_act: bool = True) -> nn.Module:
        return create_norm_act(spec, channels, act, apply_act=apply_act)

    return make


def network_table(name: str, batch: int, size: int, seconds: float) -> List[str]:
    """Return a table of training steps."""
    build, spec = NETWORKS[name]
    models = {
        spec: build(our_norm(spec)),
        f"{spec}+pn, ours": build(our_norm(f"{spec}+pn")),
        f"{spec}+pn, naive": build(naive_norm(spec)),
    }
    share_moments(models[f"{spec}+pn, ours"])
    x, labels = torch.randn(batch, 3, size, size), torch.randint(1000, (batch,))

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()

    optimizers = {n: torch.optim.SGD(m.parameters(), 1e-3, 0.9) for n, m in models.items()}
    runs = {n: lambda n=n: step(models[n], optimizers[n]) for n in models}
    times = interleaved(runs, seconds)
    lines = [f"### {name}, a training step, batch {batch}, {size} pixels", ""]
    lines += ["| | ms | medians | fastest |", "|---|---|---|---|"]
    for row, spread in times.items():
        median = spread.median / times[spec].median
        fastest = spread.fastest / times[spec].fastest
        lines.append(f"| {row} | {spread} | {median:.3f} × | {fastest:.3f} × |")
    return [*lines, ""]


def moments_table(seconds: float) -> List[str]:
    """Return a table of the time that the moments of all layers of a network take."""
    lines = ["### The moments of all layers of a network, with their derivatives", ""]
    lines += ["| | channels | together, ms | layer by layer, ms |", "|---|---|---|---|"]
    for name, (build, spec) in NETWORKS.items():
        shared = share_moments(build(our_norm(f"{spec}+pn")))
        times = interleaved(
            {
                "together": lambda shared=shared: shared.refresh(force=True),
                "each": lambda shared=shared: [layer.prepare() for layer in shared.layers],
            },
            seconds,
        )
        channels = sum(layer.num_features for layer in shared.layers)
        lines.append(f"| {name} | {channels:,} | {times['together']} | {times['each']} |")
    return [*lines, ""]


TABLES = ("square", "other", "batches", "networks", "moments")


def report(tables: Sequence[str], seconds: float) -> Iterator[List[str]]:
    """Yield all tables asked for, one after the other."""
    layouts = (torch.contiguous_format, torch.channels_last)
    if "moments" in tables:
        yield moments_table(seconds)
    if "square" in tables:
        for layout in layouts:
            for act in ACTIVATIONS:
                yield block_table("Batch 4", SQUARE, act, layout, seconds)
    if "networks" in tables:
        for name in NETWORKS:
            yield network_table(name, 4, 224, 20 * seconds)
    if "other" in tables:
        for act in ACTIVATIONS:
            yield block_table("Other shapes", OTHER, act, layouts[0], seconds)
    if "batches" in tables:
        for batch in (1, 8):
            shapes: List[Shape] = [(batch, *shape[1:]) for shape in SQUARE]
            for act in ACTIVATIONS:
                yield block_table(f"Batch {batch}", shapes, act, layouts[0], seconds)


def machine() -> str:
    """Return what the times were measured on."""
    info = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip()
        for line in (info.read_text().splitlines() if info.exists() else [])
        if line.startswith("model name")
    ]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return (
        f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, {cpu}, one thread"
    )


def main() -> None:
    """Run the tables and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seconds", type=float, default=6.0, help="for one cell's candidates")
    parser.add_argument("--markdown", type=Path, help="append the tables to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for lines in chain([[f"## {machine()}", ""]], report(arguments.tables, arguments.seconds)):
        text = "\n".join(lines) + "\n"
        print(text, end="", flush=True)
        if arguments.markdown:
            with arguments.markdown.open("a", encoding="utf-8") as file:
                file.write(text)


if __name__ == "__main__":
    main()
