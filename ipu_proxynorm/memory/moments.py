"""What an IPU holds at each moment of a micro-batch: live tensors, its product's temporaries."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np

from ipu_proxynorm.memory import liveness
from ipu_proxynorm.memory.convolutions import LIKELY, needed
from ipu_proxynorm.memory.geometry import Geometry, geometry, passes
from ipu_proxynorm.memory.graph import Capture
from ipu_proxynorm.memory.kept import kept

Array = np.ndarray


class Moments(NamedTuple):
    """The moments of one or more stages.

    Attributes:
        operators: the operator that runs, its index in the capture.
        live: bytes of activations and gradients, of float64.
    """

    operators: Array
    live: Array


class Temporaries(NamedTuple):
    """What the products of some stages may take while they run.

    Attributes:
        operators: indices of all operators of the stages, in order.
        values: operators x equally likely bytes, each row sorted; zeros of what is no product.
        products: the number of the product that an operator is; equal ones are planned alike.
    """

    operators: Array
    values: Array
    products: Array

    def at(self, operators: Array) -> Tuple[Array, Array]:
        """Return values and products of operators, by their index in the capture."""
        rows = np.searchsorted(self.operators, operators)
        return self.values[rows], self.products[rows]


@kept
def of_stage(capture: Capture, stage: int, keeping: str, checkpoints: Tuple[str, ...]) -> Moments:
    """Return the moments of a stage; see `liveness.stage_moments`."""
    found = liveness.stage_moments(capture, stage, keeping, checkpoints)
    return Moments(
        np.array([moment.operator for moment in found], dtype=int),
        np.array([moment.bytes for moment in found], dtype=np.float64),
    )


@kept
def temporaries_of(
    capture: Capture,
    stages: Tuple[int, ...],
    tiles: int,
    bound: float,
    element_bytes: int,
    half_partials: bool,
) -> Temporaries:
    """Return what the products of stages may take; see `convolutions.temporaries`."""
    operators = [o for o in capture.operators if o.stage in stages]
    values = np.zeros((len(operators), LIKELY))
    numbers: Dict[Optional[Geometry], int] = {}
    products = []
    for row, operator in enumerate(operators):
        own = passes(capture, operator)
        if own:
            values[row] = needed(own, tiles, bound, element_bytes, half_partials)
        kind = geometry(capture, operator) if own else None
        products.append(numbers.setdefault(kind, len(numbers)))
    indices = np.array([operator.index for operator in operators], dtype=int)
    return Temporaries(indices, values, np.array(products, dtype=int))
