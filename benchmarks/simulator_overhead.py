"""What the simulator adds to the arithmetic: a training step against a plain PyTorch loop.

    python benchmarks/simulator_overhead.py [--rounds N]

ResNet-20 at CIFAR shapes, float32, SGD with momentum, one thread. The plain loop runs the same
micro-batches and accumulates their gradients. Both alternate in one process; the figures are
medians, with quartiles, of the ratio of neighbouring steps. Import times are medians of fresh
processes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
import sys
import time
from typing import Callable, List, Tuple

import torch
import torch.nn.functional as F

from ipu_proxynorm import simulator as poptorch

# replicas, gradient accumulation, stages, micro-batch
SETTINGS = [(1, 1, 1, 32), (2, 4, 2, 8)]


class Block(torch.nn.Module):
    """Two convolutions with a shortcut, (N, C, H, W)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = torch.nn.GroupNorm(4, outputs)
        self.conv2 = torch.nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = torch.nn.GroupNorm(4, outputs)
        self.shortcut = (
            torch.nn.Identity()
            if stride == 1
            else torch.nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


class ResNet20(torch.nn.Module):
    """ResNet-20 for (N, 3, 32, 32), with its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        widths = [16] * 4 + [32] * 3 + [64] * 3
        self.blocks = torch.nn.Sequential(*map(Block, widths, widths[1:]))
        self.head = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy."""
        features = self.blocks(F.relu(self.stem(x))).mean((2, 3))
        return F.cross_entropy(self.head(features), target)


def make_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of both sides."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


def plain_step(
    model: ResNet20, micro_batches: List[Tuple[torch.Tensor, torch.Tensor]]
) -> Callable[[], None]:
    """Return the plain loop's step."""
    optimizer = make_optimizer(model)

    def step() -> None:
        optimizer.zero_grad()
        for x, target in micro_batches:
            (model(x, target) / len(micro_batches)).backward()
        optimizer.step()

    return step


def simulated_step(
    model: ResNet20, x: torch.Tensor, target: torch.Tensor, setting: Tuple[int, int, int, int]
) -> Callable[[], None]:
    """Return the simulator's step."""
    replicas, accumulation, stages, _ = setting
    options = poptorch.Options().replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    if stages == 2:
        poptorch.BeginBlock(model.stem, ipu_id=0)
        poptorch.BeginBlock(model.blocks[5], ipu_id=1)
    executor = poptorch.trainingModel(model, options, make_optimizer(model))
    executor.compile(x, target)
    return lambda: executor(x, target)


def timed(function: Callable[[], None]) -> float:
    """Return how many seconds a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(setting: Tuple[int, int, int, int], rounds: int) -> None:
    """Print one line of the table."""
    replicas, accumulation, stages, micro_batch = setting
    torch.manual_seed(0)
    size = replicas * accumulation * micro_batch
    x, target = torch.randn(size, 3, 32, 32), torch.randint(0, 10, (size,))
    model = ResNet20()
    plain = plain_step(
        copy.deepcopy(model), list(zip(x.split(micro_batch), target.split(micro_batch)))
    )
    simulated = simulated_step(model, x, target, setting)
    plain(), simulated()
    pairs = [(timed(plain), timed(simulated)) for _ in range(rounds)]
    ratios = [b / a for a, b in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"{replicas} x {accumulation} x {micro_batch}, {stages} stage(s): plain "
        f"{1e3 * statistics.median(a for a, _ in pairs):.1f} ms, simulated "
        f"{1e3 * statistics.median(b for _, b in pairs):.1f} ms, ratio {middle:.3f} "
        f"({low:.3f} to {high:.3f})"
    )


def import_seconds(statement: str) -> float:
    """Return how long a statement takes in a fresh process."""
    program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", program]
    return float(subprocess.run(command, capture_output=True, check=True).stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="steps of each kind")
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, Python {sys.version.split()[0]}")
    for setting in SETTINGS:
        compare(setting, rounds)
    statements = ("import torch", "import ipu_proxynorm.simulator")
    imports = [tuple(map(import_seconds, statements)) for _ in range(6)][1:]  # the first is cold
    alone, with_simulator = (statistics.median(times) for times in zip(*imports))
    print(
        f"import: torch {alone:.2f} s, simulator {with_simulator:.2f} s, "
        f"ratio {with_simulator / alone:.2f}"
    )


if __name__ == "__main__":
    main()
