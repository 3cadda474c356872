"""Random training programs, simulated in float32, against the same steps in a float64 loop.

    python benchmarks/random_programs.py [--count N] [--seed N] [--verbose]

Each program draws its layers, loss, optimiser and their values, replicas, gradient accumulation,
device iterations, reduction, output mode, execution (one IPU, pipelined, sharded) and a change of
the learning rate, and is called three times. Printed are the largest differences of outputs (losses
included) and of weights and buffers, relative to the largest magnitude of each tensor.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
from typing import Any, Dict, List, NamedTuple, Tuple

import torch
import torch.nn.functional as F
from torch import nn

from ipu_proxynorm.simulator.alias.provide import provide

provide()

import poptorch  # noqa: E402
from plain_loop import PlainLoop, collated  # noqa: E402

CALLS = 3
TOLERANCE = 1e-4


class Difference(NamedTuple):
    """The largest differences of a program."""

    outputs: float
    weights: float


def _keeps_bias(norm: nn.Module) -> bool:
    """Tell whether a bias before a layer counts: adaptive optimisers step by the noise of one."""
    return not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d))


class Program(nn.Module):
    """A small network of drawn layers and one of three losses."""

    def __init__(self, draw: random.Random, splits: int) -> None:
        super().__init__()
        width = draw.choice([4, 6, 8])
        layers: List[nn.Module] = []
        if draw.random() < 0.5:
            norm = draw.choice([nn.BatchNorm2d(width), nn.GroupNorm(2, width), nn.Identity()])
            layers += [nn.Conv2d(2, width, 3, padding=1, bias=_keeps_bias(norm)), norm]
            layers += [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        else:
            norm = draw.choice([nn.LayerNorm(width), nn.BatchNorm1d(width), nn.Tanh()])
            layers += [nn.Flatten(), nn.Linear(2 * 5 * 5, width, bias=_keeps_bias(norm)), norm]
        shared = nn.Linear(width, width)
        activations = [nn.ReLU(), nn.GELU(), nn.Sigmoid(), nn.SiLU()]
        layers += [shared, draw.choice(activations), draw.choice([shared, nn.Linear(width, width)])]
        layers += [draw.choice(activations), nn.Linear(width, 3)]
        if draw.random() < 0.3:
            layers[-2 - draw.randrange(2)].requires_grad_(False)
        self.layers = nn.ModuleList(layers)
        self.splits = set(draw.sample(range(1, len(layers)), splits)) if splits else set()
        self.loss = draw.choice(["cross_entropy", "mse", "identity"])

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Return the logits and the loss."""
        ipu = 0
        for at, layer in enumerate(self.layers):
            ipu += at in self.splits
            with self.on(ipu):
                x = layer(x)
        with self.on(ipu):
            return x, self.of(x, target)

    def on(self, ipu: int) -> Any:
        """Return the block of an IPU; none where there is one IPU only."""
        named = poptorch.Block(f"b{ipu}", ipu_id=ipu)
        return named if self.splits else contextlib.nullcontext()

    def of(self, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return the loss."""
        if self.loss == "cross_entropy":
            return F.cross_entropy(x, target)
        wanted = F.one_hot(target.long(), 3).to(x.dtype)
        if self.loss == "mse":
            return F.mse_loss(x, wanted)
        return poptorch.identity_loss((x - wanted).abs().sum(1), "mean")


def optimizer_of(draw: random.Random, model: nn.Module) -> Any:
    """Return an optimiser with drawn values, of one or two groups."""
    trained = [p for p in model.parameters() if p.requires_grad]
    lr, wd = draw.choice([0.01, 0.1]), draw.choice([0.0, 0.01])
    groups: Any = trained
    if draw.random() < 0.4:
        groups = [{"params": trained[::2], "weight_decay": 0.0}, {"params": trained[1::2]}]
    theirs = draw.choice([torch.optim, poptorch.optim])
    more: Dict[str, Any] = {"loss_scaling": draw.choice([1.0, 128.0])}
    more = more if theirs is poptorch.optim else {}
    kind = draw.choice(["SGD", "SGD", "Adam", "AdamW", "RMSprop", "LAMB"])
    if kind == "SGD":
        momentum = draw.choice([0.0, 0.9])
        values = {"momentum": momentum, "weight_decay": wd}
        if momentum:
            values.update(draw.choice([{}, {"nesterov": True}, {"dampening": 0.5}]))
        if theirs is poptorch.optim and momentum and draw.random() < 0.5:
            more["use_combined_accum"] = draw.random() < 0.5
        return theirs.SGD(groups, lr=lr, **values, **more)
    lr *= 0.1
    if kind == "RMSprop":
        values = {
            "alpha": 0.9,
            "momentum": draw.choice([0.0, 0.5]),
            "centered": draw.random() < 0.5,
        }
        return theirs.RMSprop(groups, lr=lr, eps=1e-3, weight_decay=wd, **values, **more)
    if kind == "LAMB":
        return poptorch.optim.LAMB(groups, lr=lr, eps=1e-4, weight_decay=wd)
    return getattr(theirs, kind)(groups, lr=lr, eps=1e-4, weight_decay=wd, **more)


def options_of(draw: random.Random) -> Tuple[Any, Dict[str, Any], int]:
    """Return drawn options, the same for the plain loop, and how many splits there are."""
    replicas, iterations = draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2])
    splits = draw.choice([0, 0, 1, 2])
    sharded = splits and draw.random() < 0.4
    least = 2 * (splits + 1) - 1 if splits and not sharded else 1
    accumulation = least + draw.choice([0, 0, 1, 2])
    mean = draw.random() < 0.7
    options = poptorch.Options().replicationFactor(replicas).deviceIterations(iterations)
    options.autoRoundNumIPUs(True)
    options.broadcastBuffers(False)
    options.Training.gradientAccumulation(accumulation)
    kind = poptorch.ReductionType.Mean if mean else poptorch.ReductionType.Sum
    options.Training.accumulationAndReplicationReductionType(kind)
    if mean:
        strategies = poptorch.MeanReductionStrategy
        strategy = draw.choice([strategies.Running, strategies.Post])
        options.Training.setMeanAccumulationAndReplicationReductionStrategy(strategy)
    mode, period = draw.choice(["All", "Final", "EveryN", "Sum"]), 1
    if mode == "EveryN" and splits and not sharded:  # PopART refuses it in pipelines
        mode = "All"
    if mode == "EveryN":
        period = iterations
        options.outputMode(poptorch.OutputMode.EveryN, period)
    else:
        options.outputMode(getattr(poptorch.OutputMode, mode))
    if sharded:
        options.setExecutionStrategy(poptorch.ShardedExecution())
    layout = (mode, period, iterations, accumulation, replicas)
    return options, {"layout": layout, "mean": mean}, splits


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference over the largest magnitude, at least 1e-3."""
    scale = expected.abs().max().clamp(min=1e-3)
    return float((found.double() - expected.double()).abs().max() / scale)


class Case:
    """A drawn program, its options, and batches."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        torch.manual_seed(seed)
        self.options, plain, splits = options_of(draw)
        self.layout, self.mean = plain["layout"], plain["mean"]
        self.model = Program(draw, splits)
        self.optimizer = optimizer_of(draw, self.model)
        self.changes_at = draw.choice([2, CALLS])
        size = draw.choice([2, 3])
        for number in self.layout[2:]:
            size *= number
        self.batches = [
            (torch.randn(size, 2, 5, 5), torch.randint(0, 3, (size,))) for _ in range(CALLS)
        ]
        kind, (mode, _, iterations, accumulation, replicas) = type(self.optimizer), self.layout
        self.text = (
            f"{kind.__module__.split('.')[0]}.{kind.__name__} {mode} it={iterations} "
            f"ga={accumulation} r={replicas} ipus={splits + 1} mean={self.mean} {self.model.loss}"
        )

    def loop(self, dtype: torch.dtype) -> PlainLoop:
        """Return the plain loop in a type."""
        _, _, iterations, accumulation, replicas = self.layout
        loop = PlainLoop(self.model, replicas, accumulation, iterations, self.mean, dtype)
        loop.set_optimizer(self.optimizer, self.model)
        return loop

    def run(self) -> Tuple[Difference, Difference]:
        """Return how far simulator and float32 loop are from the float64 loop."""
        plain, rounded = self.loop(torch.float64), self.loop(torch.float32)
        executor = poptorch.trainingModel(self.model, self.options, self.optimizer)
        simulated: List[Difference] = []
        by_rounding: List[Difference] = []
        for call, batch in enumerate(self.batches):
            if call == self.changes_at:
                for group in self.optimizer.param_groups:
                    group["lr"] *= 0.5
                executor.setOptimizer(self.optimizer)
                for loop in (plain, rounded):
                    loop.set_optimizer(self.optimizer, self.model)
            expected = collated(plain(batch, {}), self.layout)
            others = collated(rounded(batch, {}), self.layout)
            by_rounding.append(between(others, rounded.model, expected, plain.model))
            found = executor(*batch)
            simulated.append(between(found, self.model, expected, plain.model))
        return Difference(*map(max, zip(*simulated))), Difference(*map(max, zip(*by_rounding)))


def between(found: Any, model: nn.Module, expected: Any, plain: nn.Module) -> Difference:
    """Return the largest differences of outputs, and of weights and buffers."""
    own, theirs = model.state_dict(), plain.state_dict()
    names = [name for name in own if own[name].is_floating_point()]
    outputs = max(map(relative, found, expected))
    return Difference(outputs, max(relative(own[name], theirs[name]) for name in names))


def main() -> None:
    """Run the programs and print the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true")
    asked = parser.parse_args()
    worst, failed, rounded = Difference(0.0, 0.0), 0, 0
    for seed in range(asked.seed, asked.seed + asked.count):
        case = Case(seed)
        found, by_rounding = case.run()
        # Adaptive optimisers step by the noise of gradients that are nearly 0.
        is_equal = max(found) <= TOLERANCE
        is_rounding = not is_equal and max(found) <= 2 * max(by_rounding)
        rounded += is_rounding
        failed += not is_equal and not is_rounding
        if asked.verbose or not is_equal:
            print(
                f"{seed:5} outputs {found.outputs:.1e} weights {found.weights:.1e} float32 loop "
                f"{max(by_rounding):.1e}  {case.text}"
            )
        worst = Difference(*map(max, zip(worst, found)))
    print(
        f"{asked.count - failed} of {asked.count} programs equal the float64 loop: within "
        f"{TOLERANCE:g}, or ({rounded} of them) twice the float32 loop's difference from it;"
    )
    print(f"largest difference: outputs {worst.outputs:.1e}, weights {worst.weights:.1e}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
