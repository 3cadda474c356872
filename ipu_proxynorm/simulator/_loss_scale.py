"""Automatic loss scaling: halved when float16 gradients come near overflow, doubled otherwise.

Source: PopART's ``AutomaticLossScalingSettings`` and ``LossScaleUpdateOp``. The simulator looks at
the gradients of the parameters, where PopART also looks at those of activations.
"""

from __future__ import annotations

from typing import Any, Iterable, Mapping

import torch
from torch import Tensor

_PREFIX = "automaticLossScalingSettings."


class AutomaticLossScale:
    """The factor on top of the optimiser's own loss scaling.

    Args:
        popart_options: ``Options._Popart.options``.

    """

    def __init__(self, popart_options: Mapping[str, Any]) -> None:
        edge = popart_options.get(_PREFIX + "binEdgeLocation", 0.125)
        self._edge = edge * torch.finfo(torch.float16).max
        self._tolerated = popart_options.get(_PREFIX + "thresholdUpperCountProportion", 1e-7)
        self._period = popart_options.get(_PREFIX + "updatePeriod", 1)
        self._steps = 0
        self.factor = torch.ones((), dtype=torch.float32)

    @staticmethod
    def isEnabled(popart_options: Mapping[str, Any]) -> bool:
        """Tell whether the options ask for it."""
        return bool(popart_options.get(_PREFIX + "enabled", False))

    def observe(self, grads: Iterable[Tensor]) -> None:
        """Change the factor for the next step by this step's gradients of float16 parameters."""
        self._steps += 1
        if self._steps % self._period:
            return
        large = total = 0
        for grad in grads:
            # A comparison with NaN is false, yet NaN comes from an overflow.
            large += grad.numel() - int((grad.abs() <= self._edge).sum())
            total += grad.numel()
        if total:
            self.factor *= 0.5 if large > self._tolerated * total else 2.0
