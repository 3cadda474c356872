"""The fullest moment of an IPU where each product's plan, and so its temporaries, is uncertain."""

from __future__ import annotations

from typing import Tuple

import numpy as np

Array = np.ndarray  # of float64


def fullest_moment(live: Array, temporaries: Array, planned: Array) -> Tuple[float, float]:
    """Return activations and temporaries, bytes, whose sum is the expected size of the fullest.

    Of many products that are each planned by themselves, one comes out larger than expected: the
    expected maximum is above the maximum of what is expected. The activations are those of the
    moment that is expected to be the fullest, the temporaries what is left.

    Args:
        live: activations of each moment.
        temporaries: moments x equally likely values, each row sorted.
        planned: which product each moment is of; those of one have the same plan.
    """
    if not len(live):
        return 0.0, 0.0
    sums = live[:, None] + temporaries
    # What cannot be the fullest of all is left out.
    candidates = sums[:, -1] >= sums[:, 0].max()
    kinds = np.unique(planned[candidates])
    largest = [sums[candidates & (planned == kind)].max(axis=0) for kind in kinds]
    activations = float(live[int(sums.mean(axis=1).argmax())])
    return activations, max(0.0, expected_maximum(np.array(largest)) - activations)


def expected_maximum(values: Array) -> float:
    """Return the expected maximum of independent variables, a sorted row of likely values each."""
    if len(values) == 1:
        return float(values.mean())
    steps = np.sort(values.ravel())
    below = np.ones(len(steps))
    for row in values:
        below *= np.searchsorted(row, steps, side="right") / len(row)
    return float(steps[0] + ((1 - below[:-1]) * np.diff(steps)).sum())
