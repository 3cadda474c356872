"""ReLU's moments in closed form, with their derivatives: as few operators as there can be."""

from __future__ import annotations

import math
from typing import NamedTuple, Tuple

import torch
from torch import Tensor

TINY = 1e-30  # keeps 0 / 0 out of distances measured in standard deviations


class MomentDerivatives(NamedTuple):
    """Mean E and variance V of φ(center + scale·t), and their derivatives; each (C,)."""

    mean: Tensor
    variance: Tensor
    mean_by_center: Tensor
    mean_by_scale: Tensor
    variance_by_center: Tensor
    variance_by_scale: Tensor

    def attached(self, center: Tensor, scale: Tensor) -> Tuple[Tensor, Tensor]:
        """Return mean and variance, whose gradients by center and scale are these derivatives.

        A function's values plus its derivatives times nothing: automatic differentiation, which
        would make an operator or two of each operator of the values, makes products of these only.
        The moments are detached from center and scale. There are no second derivatives.

        Args:
            center: at which the moments are, shape (C,).
            scale: likewise.
        """
        by_center, by_scale = center - center.detach(), scale - scale.detach()
        mean = by_center * self.mean_by_center + by_scale * self.mean_by_scale
        variance = by_center * self.variance_by_center + by_scale * self.variance_by_scale
        return self.mean + mean, self.variance + variance


def far(dtype: torch.dtype) -> float:
    """Return the standard deviations beyond which a Gaussian tail counts as constant.

    What lies there is below the dtype's rounding by far; going further makes denormal numbers,
    which a CPU computes with at a twentieth of its speed.
    """
    return 13.0 if dtype == torch.float64 else 8.0


def relu_moments(center: Tensor, scale: Tensor) -> MomentDerivatives:
    """Return the closed form; α = center/|scale|, P = Φ(α), Q = Φ(−|α|), d is the density at α.

    E = relu(m) + sh; V = s²(P − h(|α| + h)), h = d − |α|Q = E[relu(t − |α|)]; ∂E/∂m = P; ∂E/∂s = d;
    ∂V/∂m = 2E(1 − P); ∂V/∂s = 2(sP − Ed). Nothing is lost for either sign of α.

    Args:
        center: m, shape (C,).
        scale: signed, shape (C,).
    """
    s, end = scale.abs(), far(center.dtype)
    alpha = (center / s.clamp_min(TINY)).clamp(-end, end)
    u = alpha.abs()
    q = torch.erfc(u * math.sqrt(0.5)) * 0.5
    density = torch.exp(alpha * alpha * -0.5) * (1 / math.sqrt(2 * math.pi))
    first = density - u * q
    mean = center.clamp_min(0) + s * first
    most = 1 - q
    positive = center > 0
    above = torch.where(positive, most, q)
    below = torch.where(positive, q, most)
    variance = ((above - first * (u + first)) * (s * s)).clamp_min(0)
    sign = scale.sign()
    return MomentDerivatives(
        *(mean, variance, above, density * sign),
        *(mean * below * 2, (s * above - mean * density) * 2 * sign),
    )
