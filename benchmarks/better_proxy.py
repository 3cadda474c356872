"""Whether another proxy, still without any statistic of a batch, recovers more.

    python benchmarks/better_proxy.py configs/compare/cifar10.yaml data.path=FOLDER \
        --norms gn4+pn --proxy assumed,narrow,mixture,eps0.003,eps0.3 --seeds 0,1,2

Adds kinds to ``ipu-proxynorm compare --proxy`` and takes its arguments. A kind would become an
option of the library if it helped beyond its error: none did (docs/evidence.md).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

from ipu_proxynorm.analysis.proxies import PROXIES, InPlaceOf, Proxy
from ipu_proxynorm.cli.main import main
from ipu_proxynorm.norm import ProxyNormAct
from ipu_proxynorm.norm.moments.gaussian import gaussian_moments
from ipu_proxynorm.norm.pending import per_channel


class GaussiansAct(InPlaceOf):
    """Group Norm, activation, and the moments of Gaussians in equal parts as its proxy.

    With one Gaussian of deviation 1 it is `ProxyNormAct`.

    Args:
        like: the unit whose place and whose parameters it takes.
        deviations: of the Gaussians before γ̃ and β̃, which all share.
        eps: added to the activation's variance.
        start: γ̃ at the start.
    """

    def __init__(
        self,
        like: ProxyNormAct,
        deviations: Sequence[float] = (1.0,),
        eps: float = 0.03,
        start: float = 0.0,
    ) -> None:
        super().__init__(like)
        self.proxy_weight, self.proxy_bias = like.proxy_weight, like.proxy_bias
        self.deviations, self.proxy_eps = deviations, eps
        nn.init.constant_(self.proxy_weight, start)

    def moments(self) -> List[Tensor]:
        """Return mean and variance of the activation of the mixture, each (C,)."""
        center = self.weight * self.proxy_bias + self.bias
        scale = self.weight * (1 + self.proxy_weight)
        parts = [gaussian_moments(center, d * scale, self.activation) for d in self.deviations]
        mean = torch.stack([part for part, _ in parts]).mean(0)
        squares = [variance + (part - mean).square() for part, variance in parts]
        return [mean, torch.stack(squares).mean(0)]

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, activate and proxy-normalize x (N, C, *)."""
        z = super().forward(x)
        mean, variance = self.moments()
        scale = torch.rsqrt(variance + self.proxy_eps)
        return (z - per_channel(mean, z)) * per_channel(scale, z)


#: Two Gaussians of variances 1 - d and 1 + d have the kurtosis 3 d² beyond a Gaussian's: here 1.2,
#: of the order that `analyse` finds of channels (docs/evidence.md).
HEAVY_TAILS = ((1 - 0.4**0.5) ** 0.5, (1 + 0.4**0.5) ** 0.5)

PROXIES.update(
    {
        "again": Proxy("the assumed proxy in this file's own form", GaussiansAct),
        "narrow": Proxy("γ̃ learned from -0.15 on", lambda unit: GaussiansAct(unit, start=-0.15)),
        "mixture": Proxy(
            "two Gaussians with heavy tails together",
            lambda unit: GaussiansAct(unit, HEAVY_TAILS),
        ),
        "eps0.003": Proxy("ε = 0.003", lambda unit: GaussiansAct(unit, eps=0.003)),
        "eps0.3": Proxy("ε = 0.3", lambda unit: GaussiansAct(unit, eps=0.3)),
    }
)

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
