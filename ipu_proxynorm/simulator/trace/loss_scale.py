"""Automatic loss scaling: halved when float16 gradients come near overflow, doubled otherwise.

Source: PopART's ``AutomaticLossScalingSettings``, ``automaticlossscaling.cpp`` and
``lossscaleupdatex.cpp``.
"""

from __future__ import annotations

from typing import Any, List, Mapping

import torch
from torch import Tensor

from ipu_proxynorm.nested import tensors_in

from ..machine.processes import sumOverProcesses
from .recorder import Recorder

_PREFIX = "automaticLossScalingSettings."


def is_enabled(popart_options: Mapping[str, Any]) -> bool:
    """Tell whether the options, ``Options._Popart.options``, ask for automatic loss scaling."""
    return bool(popart_options.get(_PREFIX + "enabled", False))


class GradientCounts:
    """Counts elements of the float16 gradients, weights' and activations', in each micro-batch.

    An operation of the program.

    Args:
        popart_options: ``Options._Popart.options``.

    """

    has_effect = True
    is_watch = True
    runs_anywhere = True
    __name__ = "gradient_counts"

    def __init__(self, popart_options: Mapping[str, Any]) -> None:
        edge = popart_options.get(_PREFIX + "binEdgeLocation", 0.125)
        self._edge = edge * torch.finfo(torch.float16).max
        self._large = 0
        self._total = 0
        #: Gradients that the program counts in.
        self.tracked = 0

    def watch(self, recorder: Recorder, function: Any, given: Any, results: List[Tensor]) -> None:
        """Let the program count in what an operation of the backward pass has just computed."""
        returns = function._schema.returns
        moves = any(value.alias_info is not None for value in returns)  # a view, or in place
        if recorder.nodes.at_work is None or moves or not tensors_in(given):
            return
        for tensor in results:
            if tensor.dtype == torch.float16:
                self.tracked += 1
                recorder.emit(self, [tensor], {})

    def record(self, gradient: Tensor) -> None:
        """Count nothing while the program is recorded: its values do not count yet."""

    def __call__(self, gradient: Tensor) -> None:
        """Count the elements of one gradient."""
        # A comparison with NaN is false, yet NaN comes from an overflow.
        self._large += gradient.numel() - int((gradient.abs() <= self._edge).sum())
        self._total += gradient.numel()

    def take(self, processes: int) -> Tensor:
        """Return the elements near overflow, and all, since the last time, over all processes.

        Returns:
            float64, shape (2,).

        """
        counts = torch.tensor([self._large, self._total], dtype=torch.float64)
        self._large = self._total = 0
        sumOverProcesses([counts], processes)
        return counts


class AutomaticLossScale:
    """The factor on top of the optimiser's own loss scaling.

    Args:
        popart_options: ``Options._Popart.options``.

    """

    def __init__(self, popart_options: Mapping[str, Any]) -> None:
        self._tolerated = popart_options.get(_PREFIX + "thresholdUpperCountProportion", 1e-7)
        self._period = popart_options.get(_PREFIX + "updatePeriod", 1)
        self._steps = 0
        self.factor = torch.ones((), dtype=torch.float32)

    def observe(self, counts: Tensor) -> None:
        """Change the factor for the next step, in the first step of each period.

        Args:
            counts: this step's, as ``GradientCounts.take`` returns them.

        """
        is_first = self._steps % self._period == 0
        self._steps += 1
        if is_first:
            large, total = counts.tolist()
            self.factor *= 0.5 if large > self._tolerated * total else 2.0
