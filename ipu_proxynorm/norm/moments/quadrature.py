"""Rules that stand for a Gaussian or an interval: lists of nodes and of weights."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import List, Tuple

import numpy as np

Rule = Tuple[List[float], List[float]]


@functools.lru_cache(maxsize=None)
def trapezoid_rule(n: int, reach: float) -> Rule:
    """N equidistant nodes from −reach to reach, and Gaussian weights that sum to 1.

    For an integrand that is analytic around the real axis the trapezoid rule converges
    exponentially, here faster than Gauss–Hermite.
    """
    nodes = [reach * (2 * i / (n - 1) - 1) for i in range(n)]
    weights = [math.exp(-0.5 * t * t) for t in nodes]
    total = sum(weights)
    return nodes, [w / total for w in weights]


@functools.lru_cache(maxsize=None)
def midpoint_quantiles(n: int) -> Rule:
    """N midpoint quantiles of the Gaussian, √2·erfinv(2(i + ½)/n − 1), equally weighted.

    Source: the original implementation of Proxy Norm, which takes n = 200.

    Raises:
        ValueError: n below 1.

    """
    if n < 1:
        raise ValueError(f"n is {n}: the sampled moments need at least 1 quantile")
    quantile = NormalDist().inv_cdf  # of level p: √2·erfinv(2p − 1)
    return [quantile((i + 0.5) / n) for i in range(n)], [1 / n] * n


@functools.lru_cache(maxsize=None)
def legendre_rule(n: int) -> Rule:
    """Gauss–Legendre nodes and weights on [−1, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(n)
    return nodes.tolist(), weights.tolist()
