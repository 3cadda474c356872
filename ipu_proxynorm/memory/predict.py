"""Says whether a program fits: budgets by IPU, a verdict with an interval, advice."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, Optional, Sequence, Tuple, Union

from torch import Tensor, nn

from ipu_proxynorm.memory import budget, calibration
from ipu_proxynorm.memory.advice import SAFE, Advice
from ipu_proxynorm.memory.advice import advise as look_for_advice
from ipu_proxynorm.memory.capture import capture as capture_model
from ipu_proxynorm.memory.graph import Capture
from ipu_proxynorm.memory.layout import Layout, OptimizerMemory, read_optimizer
from ipu_proxynorm.memory.options import precision_of_weights, read_options
from ipu_proxynorm.memory.throughput import Throughput, throughput

FITS, UNCERTAIN, OUT_OF_MEMORY = "fits", "uncertain", "out of memory"
#: Predicted utilisation of the fullest IPU above which a program cannot fit; up to SAFE it does.
HOPELESS = 1.15
#: How often "fits" is known to be wrong: of so many programs at twice the largest micro-batch that
#: was published, so many were said to fit (``benchmarks/memory_accuracy.py``, held-out families).
FALSE_FITS, AT_TWICE_THE_LARGEST = 2, 29


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a program fits on its fullest IPU.

    Attributes:
        name: ``fits`` (at most 85 % predicted), ``uncertain`` or ``out of memory`` (over 115 %).
        ipu: the fullest IPU of a replica.
        utilisation: the utilisation of that IPU, by the central calibration; 1.0 is its SRAM.
        low: the 10th percentile of the ensemble of calibrations, at most ``utilisation``.
        high: the 90th percentile, at least ``utilisation``.
    """

    name: str
    ipu: int
    utilisation: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a program takes on its IPUs.

    Attributes:
        capture: operators and tensors of one micro-batch.
        layout: how they lie on the IPUs.
        ipus: the budget of each IPU of a replica, by the central calibration.
        verdict: for the fullest of them.
        advice: up to three changes that save most; empty where none was asked for or helps.
    """

    capture: Capture
    layout: Layout
    ipus: Tuple[budget.IpuBudget, ...]
    verdict: Verdict
    advice: Tuple[Advice, ...] = ()

    @functools.cached_property
    def throughput(self) -> Throughput:
        """Images per second of all replicas, where the time goes, and what limits it."""
        return throughput(self.capture, self.layout)

    @property
    def replica_bytes(self) -> int:
        """SRAM that one replica takes, bytes."""
        return sum(ipu.used for ipu in self.ipus)

    @property
    def system_bytes(self) -> int:
        """SRAM that all replicas take, bytes."""
        return self.replica_bytes * self.layout.replicas

    @property
    def streaming_memory_bytes(self) -> int:
        """Streaming Memory that all replicas take, bytes."""
        per_replica = sum(sum(ipu.streaming_memory.values()) for ipu in self.ipus)
        return per_replica * self.layout.replicas


def predict(
    model: nn.Module,
    options: Any = None,
    inputs: Union[Tensor, Sequence[Tensor]] = (),
    *,
    optimizer: Any = None,
    training: Optional[bool] = None,
    splits: Sequence[str] = (),
    advise: Optional[bool] = None,
) -> Prediction:
    """Return what a program takes on each IPU.

    Args:
        model: any module; see `capture`.
        options: a `Layout`, or ``poptorch.Options`` to read one from, whose precision is then what
            the model's parameters have; None: the defaults.
        inputs: one micro-batch; values do not matter.
        optimizer: a PopTorch optimiser or an `OptimizerMemory`; None in inference.
        training: with a backward pass; None: if there is an optimiser.
        splits: layers at which pipeline stages begin, instead of the model's blocks.
        advise: look for changes that save most; None: only where the program does not surely fit.

    Raises:
        UserError: the model cannot be traced.
    """
    layout = as_layout(options, optimizer)
    precision: Optional[str] = layout.precision
    if not isinstance(options, Layout):
        layout = dataclasses.replace(layout, precision=precision_of_weights(model))
        # A model of several types keeps them.
        precision = None if layout.precision == "32.32" else layout.precision
    captured = capture_model(
        model,
        inputs,
        training=layout.optimizer is not None if training is None else training,
        precision=precision,
        options=None if isinstance(options, Layout) else options,
        splits=splits,
    )
    own = getattr(model, "split_points", None)
    points: Sequence[str] = own() if callable(own) else ()
    return predict_capture(captured, layout, advise=advise, points=points)


def as_layout(options: Any, optimizer: Any = None) -> Layout:
    """Return the layout that ``poptorch.Options`` (or a layout) and an optimiser describe."""
    layout = options if isinstance(options, Layout) else read_options(options)
    if optimizer is None:
        return layout
    if not isinstance(optimizer, OptimizerMemory):
        optimizer = read_optimizer(optimizer, layout.weight_bytes)
    return dataclasses.replace(layout, optimizer=optimizer)


def predict_capture(
    captured: Capture,
    layout: Layout,
    *,
    advise: Optional[bool] = False,
    points: Sequence[str] = (),
) -> Prediction:
    """Return the prediction for a capture: plain arithmetic, fast enough for searches.

    Args:
        captured: the capture of the program.
        layout: its own.
        advise: as of `predict`.
        points: layers at which advice may let stages begin; empty: wherever one tensor crosses.
    """
    members = calibration.ensemble()
    loads = budget.ipu_loads(captured, layout)
    budgets = [[budget.weigh(load, member) for load in loads] for member in members]
    central = budgets[0]
    fullest = max(central, key=lambda b: b.utilisation)
    spread = sorted(max(b.utilisation for b in member) for member in budgets)
    verdict = Verdict(
        name=verdict_name(fullest.utilisation),
        ipu=fullest.ipu,
        utilisation=fullest.utilisation,
        low=min(fullest.utilisation, spread[round(0.1 * (len(spread) - 1))]),
        high=max(fullest.utilisation, spread[round(0.9 * (len(spread) - 1))]),
    )
    wanted = verdict.name != FITS if advise is None else advise
    advice = look_for_advice(captured, layout, points) if wanted else ()
    return Prediction(captured, layout, tuple(central), verdict, advice)


def verdict_name(utilisation: float) -> str:
    """Return the verdict for a predicted utilisation of the fullest IPU."""
    if utilisation <= SAFE:
        return FITS
    return UNCERTAIN if utilisation <= HOPELESS else OUT_OF_MEMORY
