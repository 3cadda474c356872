"""Run a PopTorch program on the simulator, with a plain float64 loop beside it, and compare.

    python benchmarks/simulated_and_plain.py [--calls N] [--tolerance T] PROGRAM.py [ARGUMENTS]
    python benchmarks/simulated_and_plain.py [--calls N] [--tolerance T] -m MODULE [ARGUMENTS]

The program runs unchanged, but for dropout, which is off in both. For each of its training models
the loop (``plain_loop.py``) trains a copy on the same batches. After each call the largest
differences of losses, of all outputs and of weights and buffers are printed, each relative to the
largest magnitude of its tensor. A second loop says how much of that is rounding, which adaptive
optimisers amplify where gradients are nearly 0: it computes in float32; for models with float16
weights or inputs it rounds every operator's result to float16, forward and backward. The program
ends after N calls of each training model (default: 5). The exit status is 1 if a difference exceeds
both T (default: 1e-3, with float16 0.05) and three times the second loop's; with float16 that of
the outputs counts.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import runpy
import sys
from typing import Any, Dict, List, Optional, Tuple

import torch

from ipu_proxynorm.simulator.alias.provide import provide

provide()

import poptorch  # noqa: E402
from plain_loop import PlainLoop, collated, tensors_in  # noqa: E402

from ipu_proxynorm.simulator import _poplar_executor  # noqa: E402

_Executor = _poplar_executor.PoplarExecutor
_REAL = {name: getattr(_Executor, name) for name in ("__init__", "__call__", "setOptimizer")}


class Finished(Exception):
    """Every training model has been called often enough."""


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference over the largest magnitude, at least 1e-3."""
    found, expected = found.detach().double().flatten(), expected.detach().double().flatten()
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    if not torch.equal(found.isfinite(), expected.isfinite()):
        return float("inf")
    found, expected = found[found.isfinite()], expected[expected.isfinite()]
    if not found.numel():
        return 0.0
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1e-3))


class Comparison:
    """A training model of the program, and the loop beside it."""

    def __init__(self, executor: Any, number: int) -> None:
        options, user = executor.options, executor.model
        self.number, self.calls = number, 0
        self.worst_outputs = self.worst_weights = 0.0
        self.executor, self.user = executor, user
        training = options.Training
        replicas, accumulation = options.replication_factor, training.gradient_accumulation
        mode = poptorch.OutputMode(options.output_mode).name
        iterations = options.device_iterations
        period = options.output_return_period
        self.layout = (mode, period, iterations, accumulation, replicas)
        mean = training.accumulation_and_replication_reduction_type == poptorch.ReductionType.Mean
        shape = (replicas, accumulation, iterations, mean)
        self.loop = PlainLoop(user, *shape)
        self._shape = shape
        self.by_rounding = 0.0
        self.has_half = any(t.dtype == torch.float16 for t in user.state_dict().values())

    def _start(self, given: List[torch.Tensor]) -> None:
        """Give the loops the program's weights; what is given first tells the precision."""
        self.has_half |= any(t.dtype == torch.float16 for t in given)
        shape, half = self._shape, self.has_half
        self.rounded = PlainLoop(self.user, *shape, dtype=torch.float32, halved=half)
        for loop in (self.loop, self.rounded):
            loop.load(self.user)
        self.set_optimizer(self.executor._optimizer)

    def set_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Follow the program's optimiser."""
        for loop in (self.loop, self.rounded):
            loop.set_optimizer(optimizer, self.user)

    def call(self, args: Any, kwargs: Dict[str, Any]) -> Any:
        """Call both, print the differences, and return the simulator's result."""
        if self.calls == 0:
            self._start(tensors_in((args, kwargs)))
        for loop in (self.loop, self.rounded):
            for own, theirs in zip(loop.model.modules(), self.user.modules()):
                own.training = theirs.training
        expected = collated(self.loop(args, kwargs), self.layout)
        rounded = collated(self.rounded(args, kwargs), self.layout)
        result = _REAL["__call__"](self.executor, *args, **kwargs)
        self.calls += 1
        found = tensors_in(result)
        outputs = self._outputs(found, expected)
        losses = [each for each, is_loss in zip(outputs, self.loop.is_loss) if is_loss]
        name, weights = self._weights(self.user)
        of_outputs = self._outputs(rounded, expected)
        of_weights = self._weights(self.rounded.model)[1]
        print(
            f"model {self.number} call {self.calls}: losses {_text(losses)} outputs "
            f"{_text(outputs)} weights {weights:.1e} ({name}); {self.precision} loop: outputs "
            f"{_text(of_outputs)} weights {of_weights:.1e}",
            flush=True,
        )
        self.worst_outputs = max([self.worst_outputs, *outputs])
        self.worst_weights = max(self.worst_weights, weights)
        judged = of_outputs if self.has_half else [*of_outputs, of_weights]
        self.by_rounding = max([self.by_rounding, *judged])
        return result

    @property
    def precision(self) -> str:
        """Which type rounds the second loop."""
        return "float16" if self.has_half else "float32"

    @staticmethod
    def _outputs(found: List[torch.Tensor], expected: List[torch.Tensor]) -> List[float]:
        """Return the differences of the outputs; 0 for whole numbers."""
        return [
            relative(one, other) if other.is_floating_point() else 0.0
            for one, other in zip(found, expected)
        ]

    def _weights(self, model: torch.nn.Module) -> Tuple[str, float]:
        """Return which tensor of a model's state differs most from the loop's, and by how much."""
        own, theirs = model.state_dict(), self.loop.model.state_dict()
        names = [name for name in theirs if theirs[name].is_floating_point()]
        by_name = {name: relative(own[name], theirs[name]) for name in names}
        name = max(by_name, key=lambda each: by_name[each])
        return name, by_name[name]


def _text(differences: List[float]) -> str:
    return f"{max(differences):.1e}" if differences else "(none returned)"


class Watch:
    """Sees what the program does with its executors.

    Args:
        calls: after how many calls of each training model the program ends.

    """

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self.comparisons: Dict[int, Comparison] = {}

    def of(self, executor: Any) -> Optional[Comparison]:
        """Return the comparison of an executor, None if there is no plain form of what it does."""
        options = executor.options
        groups = options.input_group_size > 1 or executor.per_replica_params
        if not executor._training or options.Distributed.numProcesses > 1 or groups:
            if executor._training:
                print("a training model is not compared: it is distributed, or has groups")
            return None
        if id(executor) not in self.comparisons:
            self.comparisons[id(executor)] = Comparison(executor, len(self.comparisons))
        return self.comparisons[id(executor)]

    @contextlib.contextmanager
    def installed(self) -> Any:
        """Stand in the executor's methods meanwhile."""
        watch = self

        def call(executor: Any, *args: Any, **kwargs: Any) -> Any:
            comparison = watch.of(executor)
            if comparison is None:
                return _REAL["__call__"](executor, *args, **kwargs)
            result = comparison.call(args, kwargs)
            if all(each.calls >= watch._calls for each in watch.comparisons.values()):
                raise Finished
            return result

        def set_optimizer(executor: Any, optimizer: torch.optim.Optimizer) -> None:
            _REAL["setOptimizer"](executor, optimizer)
            comparison = watch.comparisons.get(id(executor))
            if comparison is not None:
                comparison.set_optimizer(optimizer)

        _Executor.__call__, _Executor.setOptimizer = call, set_optimizer
        try:
            yield
        finally:
            for name, function in _REAL.items():
                setattr(_Executor, name, function)


@contextlib.contextmanager
def without_dropout() -> Any:
    """Let dropout do nothing meanwhile."""
    real = torch.nn.functional.dropout, torch.dropout
    plain = lambda input, *args, **kwargs: input  # noqa: E731
    torch.nn.functional.dropout = torch.dropout = plain  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.nn.functional.dropout, torch.dropout = real


def run(program: List[str], is_module: bool) -> None:
    """Run a program as Python itself would."""
    sys.argv = program
    if is_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(program[0])))
        runpy.run_path(program[0], run_name="__main__")


def main() -> None:
    """Compare a program and say by how much it differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--tolerance", type=float, help="largest relative difference")
    parser.add_argument("-m", dest="module", action="store_true", help="PROGRAM is a module")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    watch = Watch(asked.calls)
    with watch.installed(), without_dropout(), contextlib.suppress(Finished, SystemExit):
        run(asked.program, asked.module)
    if not watch.comparisons:
        print("the program has trained nothing")
        sys.exit(2)
    failed = False
    for comparison in watch.comparisons.values():
        limit = asked.tolerance or (0.05 if comparison.has_half else 1e-3)
        judged = [comparison.worst_outputs]
        judged += [] if comparison.has_half else [comparison.worst_weights]
        failed |= not max(judged) <= max(limit, 3 * comparison.by_rounding)
        precision = comparison.precision
        replicas = comparison.layout[-1]
        print(
            f"model {comparison.number}: {precision}, {replicas} replicas, {comparison.calls} "
            f"calls, largest difference: outputs {comparison.worst_outputs:.1e}, weights "
            f"{comparison.worst_weights:.1e}, {precision} loop {comparison.by_rounding:.1e}"
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
