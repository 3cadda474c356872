"""Averages of a network's weights over training, kept on the host in float64.

Exponential: v ← d·v + (1 − d)·w at each reading of the weights, starting at the first; Graphcore's
example applications take d = 0.97 once an epoch. Plain: the mean of all readings (Izmailov et al.,
*Averaging Weights Leads to Wider Optima*, 2018, arXiv 1803.05407). Running statistics of Batch
Norm are averaged like weights, which only approximates those of the averaged network.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, Mapping, Optional

from torch import Tensor, nn

from ipu_proxynorm.config import TrainingConfig
from ipu_proxynorm.files.checkpoint import plain


class WeightAverage:
    """The average of all weights that were given to :meth:`update`.

    Args:
        decay: weight of the old average, 0 to 1; None: all readings count alike.
    """

    def __init__(self, decay: Optional[float]) -> None:
        self.decay = decay
        self.readings = 0
        self._values: Dict[str, Tensor] = {}

    @classmethod
    def of(cls, config: TrainingConfig) -> Optional[WeightAverage]:
        """Return what ``config`` asks for; None: no average."""
        if config.average == "none":
            return None
        return cls(config.average_decay if config.average == "exponential" else None)

    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take in one reading, a state dict; integers are not averaged, the newest counts."""
        self.readings += 1
        share = 1 / self.readings if self.decay is None else 1 - self.decay
        for name, tensor in weights.items():
            value = plain(tensor)
            if not value.is_floating_point():
                self._values[name] = value
            elif self.readings == 1:
                self._values[name] = value.double()
            else:
                self._values[name].mul_(1 - share).add_(value.double(), alpha=share)

    def weights(self) -> Dict[str, Tensor]:
        """Return the average as a state dict; floating-point tensors are float64."""
        return dict(self._values)

    def state_dict(self) -> Dict[str, Any]:
        """Return all that :meth:`load_state_dict` needs to go on exactly."""
        return {"readings": self.readings, "values": dict(self._values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        self.readings = int(state["readings"])
        self._values = plain(state["values"])


@contextlib.contextmanager
def weights_replaced(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Give ``model`` other weights meanwhile, rounded to its types; its own come back bit for bit.

    To be entered while the IPUs are left to no program that trains ``model``.
    """
    own = plain(model.state_dict())
    model.load_state_dict(dict(weights))
    try:
        yield
    finally:
        model.load_state_dict(own)
