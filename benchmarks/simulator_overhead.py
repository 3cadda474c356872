"""What the simulator costs: training steps of one norm against another's, and of other splits.

    python benchmarks/simulator_overhead.py [--rounds N] [--only resnet,efficientnet,...]

One thread, float32 unless said, SGD with momentum. The steps that are compared alternate in one
process; a figure is the median, with quartiles, of the ratio of neighbouring steps' CPU time. The
plain loop is PyTorch's on the same network, micro-batch by micro-batch.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Callable, Dict, List, Sequence

import torch
import torch.nn.functional as F

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.ipu import place
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import share_moments

Step = Callable[[], object]


class Trained(torch.nn.Module):
    """A network with its loss, for (N, 3, H, W)."""

    def __init__(self, name: str, norm: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = create_model(name, norm=norm, num_classes=10)
        if "pn" in norm:
            share_moments(self.network)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy."""
        return F.cross_entropy(self.network(x).float(), target)


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of every step."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


def batch(images: int, resolution: int) -> List[torch.Tensor]:
    """Return random images and labels."""
    return [torch.randn(images, 3, resolution, resolution), torch.randint(10, (images,))]


def simulated(
    name: str,
    norm: str,
    resolution: int,
    micro_batch: int,
    accumulation: int = 1,
    replicas: int = 1,
    half: bool = False,
    splits: Sequence[str] = (),
) -> Step:
    """Return the simulator's step, compiled; stages begin at ``splits``."""
    options = poptorch.Options().replicationFactor(replicas).broadcastBuffers(False)
    options.Training.gradientAccumulation(accumulation)
    model = Trained(name, norm)
    if splits:
        place(model.network, splits)
        options.autoRoundNumIPUs(True)
    x, target = batch(micro_batch * accumulation * replicas, resolution)
    if half:
        model, x = model.half(), x.half()
    executor = poptorch.trainingModel(model, options, optimizer_of(model))
    executor.compile(x, target)
    return lambda: executor(x, target)


def plain(name: str, norm: str, resolution: int, micro_batch: int, accumulation: int = 1) -> Step:
    """Return the step of PyTorch's loop."""
    model = Trained(name, norm)
    x, target = batch(micro_batch * accumulation, resolution)
    optimizer = optimizer_of(model)

    def step() -> None:
        optimizer.zero_grad()
        for images, labels in zip(x.split(micro_batch), target.split(micro_batch)):
            (model(images, labels) / accumulation).backward()
        optimizer.step()

    return step


def show(
    title: str,
    reach: str,
    steps: Dict[str, Step],
    rounds: int,
    images: int,
    clock: Callable[[], float] = time.thread_time,
) -> None:
    """Print how long the second step takes by the first."""
    for step in steps.values():
        step(), step()
    seconds: Dict[str, List[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = clock()
            step()
            seconds[name].append(clock() - start)
    base, other = steps
    ratios = [b / a for a, b in zip(seconds[base], seconds[other])]
    low, middle, high = statistics.quantiles(ratios, n=4)
    speeds = ", ".join(
        f"{name} {images / statistics.median(taken):.0f}" for name, taken in seconds.items()
    )
    print(
        f"{title} | {reach} | {middle:.3f} ({low:.3f} to {high:.3f}) | images/s: {speeds}",
        flush=True,
    )


def resnet(rounds: int) -> None:
    """gn4+pn by gn4."""
    steps = {norm: simulated("resnet20", norm, 32, 32) for norm in ("gn4", "gn4+pn")}
    show("step gn4+pn / gn4, ResNet-20, 32 x 1", "<= 1.10", steps, rounds, 32)


def efficientnet(rounds: int) -> None:
    """ln+pn by ln."""
    steps = {norm: simulated("efficientnet_b0", norm, 96, 8) for norm in ("ln", "ln+pn")}
    show("step ln+pn / ln, EfficientNet-B0, 96 x 96, 8", "<= 1.20", steps, rounds, 8)


def splits(rounds: int) -> None:
    """Speed at small micro-batches by that of one large."""
    for norm, reach in (("gn4", 0.85), ("gn4+pn", 0.85), ("bn", 0.6)):
        size = 2 if norm == "bn" else 1
        for micro_batch in sorted({1, size}):
            steps = {
                f"{micro_batch} x {32 // micro_batch}": simulated(
                    "resnet20", norm, 32, micro_batch, 32 // micro_batch
                ),
                "32 x 1": simulated("resnet20", norm, 32, 32),
            }
            title = f"images/s of {norm} at micro-batch {micro_batch} by micro-batch 32"
            show(title, f">= {reach}", steps, rounds, 32)
    steps = {
        "4 x 4 x 2": simulated("resnet20", "gn4+pn", 32, 4, 4, 2, splits=["layer2.0"]),
        "32 x 1": simulated("resnet20", "gn4+pn", 32, 32),
    }
    title = "images/s of gn4+pn at 2 replicas x 4 x micro-batch 4, 2 stages, by micro-batch 32"
    show(title, ">= 0.85", steps, rounds, 32)


def loops(rounds: int) -> None:
    """The simulator by PyTorch's loop."""
    for micro_batch, accumulation, reach in ((32, 1, "<= 0.95"), (1, 32, "<= 0.5")):
        steps = {
            "plain": plain("resnet20", "gn4", 32, micro_batch, accumulation),
            "simulated": simulated("resnet20", "gn4", 32, micro_batch, accumulation),
        }
        show(f"simulated / plain, gn4, {micro_batch} x {accumulation}", reach, steps, rounds, 32)


def half(rounds: int) -> None:
    """float16 by float32."""
    steps = {
        "float32": simulated("resnet20", "gn4+pn", 32, 32),
        "float16": simulated("resnet20", "gn4+pn", 32, 32, half=True),
    }
    show("step float16 / float32, gn4+pn, ResNet-20", "<= 1.5", steps, rounds, 32)


def inferred(
    name: str, norm: str, resolution: int, micro_batch: int, iterations: int, optimize: str = "1"
) -> Step:
    """Return the simulator's inference of a batch, compiled."""
    os.environ["POPTORCH_SIM_OPTIMIZE"] = optimize
    model = create_model(name, norm=norm, num_classes=10)
    executor = poptorch.inferenceModel(
        model.eval(), poptorch.Options().deviceIterations(iterations)
    )
    x, _ = batch(micro_batch * iterations, resolution)
    executor(x)
    os.environ.pop("POPTORCH_SIM_OPTIMIZE")
    return lambda: executor(x)


def inference(rounds: int) -> None:
    """Inference at micro-batch 1 by micro-batch 32, and by programs as recorded."""
    for norm in ("gn4+pn", "bn"):
        steps = {
            "1 x 32": inferred("resnet20", norm, 32, 1, 32),
            "32 x 1": inferred("resnet20", norm, 32, 32, 1),
        }
        show(f"inference, images/s of {norm} at 1 x 32 by 32 x 1", "", steps, rounds, 32)
        for micro_batch in (32, 1):
            steps = {
                name: inferred("resnet20", norm, 32, micro_batch, 32 // micro_batch, optimize)
                for name, optimize in (("recorded", "0"), ("rewritten", "1"))
            }
            title = f"inference, {norm}, {micro_batch} x {32 // micro_batch}, rewritten / recorded"
            show(title, "", steps, rounds, 32)


def threads(rounds: int) -> None:
    """A step's time by the clock with all cores' threads by one thread's."""
    cores = len(os.sched_getaffinity(0))
    for name, norm, resolution, micro_batch, accumulation in (
        ("resnet20", "gn4+pn", 32, 32, 1),
        ("resnet20", "gn4+pn", 32, 1, 32),
        ("resnet50", "gn4+pn", 64, 4, 1),
        ("resnetv2_8", "gn4+pn", 8, 4, 8),
    ):
        step = simulated(name, norm, resolution, micro_batch, accumulation)

        def with_threads(count: int, step: Step = step) -> Step:
            def run() -> None:
                torch.set_num_threads(count)
                step()
                torch.set_num_threads(1)

            return run

        steps = {"1": with_threads(1), str(cores): with_threads(cores)}
        title = (
            f"{cores} threads / 1, {name} {norm}, {resolution}^2, {micro_batch} x {accumulation}"
        )
        images = micro_batch * accumulation
        show(title, "by the clock", steps, rounds, images, time.perf_counter)


def compiling(rounds: int) -> None:
    """Compile time with the rewrites by that without; each compiles from scratch."""

    def compiled(optimize: str) -> Step:
        def step() -> None:
            os.environ["POPTORCH_SIM_OPTIMIZE"] = optimize
            simulated("resnet50", "gn4", 64, 1)
            os.environ.pop("POPTORCH_SIM_OPTIMIZE")

        return step

    steps = {"recorded": compiled("0"), "rewritten": compiled("1")}
    show("compiling ResNet-50", "<= 1.3", steps, max(3, rounds // 3), 1)


def imports(rounds: int) -> None:
    """Time to import, by torch alone, in fresh processes."""

    def seconds(statement: str) -> float:
        program = f"import time; t = time.process_time(); {statement}; print(time.process_time()-t)"
        command = [sys.executable, "-c", program]
        return float(subprocess.run(command, capture_output=True, check=True).stdout)

    statements = ("import torch", "import ipu_proxynorm.simulator")
    pairs = [tuple(map(seconds, statements)) for _ in range(4)][1:]  # the first is cold
    alone, with_simulator = (statistics.median(times) for times in zip(*pairs))
    print(f"import simulator / torch | | {with_simulator / alone:.3f}", flush=True)


def profile(rounds: int) -> None:
    """What a gn4+pn step's time goes to, by operator."""
    step = simulated("resnet20", "gn4+pn", 32, 32)
    step(), step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(rounds):
            step()
    found = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in found)
    print(f"a step of gn4+pn, ResNet-20, 32 x 1, by operator ({whole / rounds / 1e3:.1f} ms)")
    for event in found[:14]:
        share, calls = event.self_cpu_time_total / whole, event.count // rounds
        print(f"  {event.key:40s} {share:6.1%} {calls:5d} calls", flush=True)


PARTS = {
    part.__name__: part
    for part in (
        resnet, efficientnet, splits, loops, half, inference, threads, compiling, imports, profile
    )
}  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="steps of each kind")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}", flush=True)
    for name in arguments.only.split(","):
        PARTS[name](arguments.rounds)


if __name__ == "__main__":
    main()
