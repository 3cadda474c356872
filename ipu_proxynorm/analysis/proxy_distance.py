"""How far each channel's distribution is from the Gaussian that Proxy Norm assumes of it."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterable, List

import torch
from torch import Tensor, nn

from ipu_proxynorm.analysis.normalized import normalized
from ipu_proxynorm.analysis.recorder import norm_layers
from ipu_proxynorm.norm import ProxyNormAct
from ipu_proxynorm.norm.pending import per_channel

#: What is told of a layer, in order, and what it is: each a root mean square over channels.
DISTANCES = {
    "mean": "mean of the channel less the proxy's, in the proxy's deviations",
    "deviation": "deviation of the channel by the proxy's, less 1",
    "skewness": "third standardized moment; a Gaussian's is 0",
    "kurtosis": "fourth standardized moment less a Gaussian's 3",
    "left_mean": "mean that Proxy Norm leaves in its output; Batch Norm's is 0",
    "left_deviation": "deviation of its output, less that of an output whose moments were true",
}


@dataclasses.dataclass(frozen=True)
class ProxyDistance:
    """Distance between channels and their proxies in one layer, over all images and places.

    t is the pre-activation before scale and shift, less β̃, by 1 + γ̃: under the proxy's assumption
    a standard Gaussian. Figures are root mean squares over channels, see `DISTANCES`.
    """

    mean: float
    deviation: float
    skewness: float
    kurtosis: float
    left_mean: float
    left_deviation: float
    instances: int


class _Layer:
    """Sums of one layer's channels, in float64; no figure depends on the size of the batches."""

    def __init__(self, unit: ProxyNormAct) -> None:
        self.unit = unit
        self.instances = 0
        self.count = 0
        self.powers = torch.zeros(4, unit.num_features, dtype=torch.float64)  # sums of t, t², ...
        self.outputs = torch.zeros(2, unit.num_features, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Take in a batch of the unit's input (N, C, *)."""
        unit = self.unit
        gamma, beta, proxy_gamma, proxy_beta = (p.double() for p in unit.moment_parameters)
        y = normalized(unit, x).double()
        t = (y - per_channel(proxy_beta, y)) / per_channel(1 + proxy_gamma, y)
        z = unit.activation(y * per_channel(gamma, y) + per_channel(beta, y))
        mean, variance = (moment.double() for moment in unit.moments())
        scale = torch.rsqrt(variance + unit.proxy_eps)
        out = (z - per_channel(mean, z)) * per_channel(scale, z)
        for power in range(4):
            self.powers[power] += _over_places(t.pow(power + 1))
        for power in range(2):
            self.outputs[power] += _over_places(out.pow(power + 1))
        self.instances += len(y)
        self.count += y.numel() // y.shape[1]

    @torch.no_grad()
    def result(self) -> ProxyDistance:
        """Return the distances over all that was taken in."""
        m1, m2, m3, m4 = self.powers / self.count
        variance = (m2 - m1.square()).clamp_min(1e-30)
        third = m3 - 3 * m1 * m2 + 2 * m1.pow(3)
        fourth = m4 - 4 * m1 * m3 + 6 * m1.square() * m2 - 3 * m1.pow(4)
        left, square = self.outputs / self.count
        left_variance = (square - left.square()).clamp_min(0)
        assumed = self.unit.moments()[1].double() + self.unit.proxy_eps
        activated = left_variance * assumed  # variance of the activation itself
        wanted = activated / (activated + self.unit.proxy_eps)
        return ProxyDistance(
            mean=_rms(m1),
            deviation=_rms(variance.sqrt() - 1),
            skewness=_rms(third / variance.pow(1.5)),
            kurtosis=_rms(fourth / variance.square() - 3),
            left_mean=_rms(left),
            left_deviation=_rms(left_variance.sqrt() - wanted.sqrt()),
            instances=self.instances,
        )


def _over_places(values: Tensor) -> Tensor:
    """Return the sum of (N, C, *) over all but channels, (C,)."""
    return values.transpose(0, 1).flatten(1).sum(1)


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def record_proxies(
    model: nn.Module, batches: Iterable[Tensor], pattern: str = "*"
) -> Dict[str, ProxyDistance]:
    """Return, for each unit with Proxy Norm, how far its channels are from their proxies.

    Args:
        model: a network; its results do not change. Empty if it has no Proxy Norm.
        batches: its inputs, e.g. images (N, C, H, W).
        pattern: which normalizations, see `norm_layers`.
    """
    layers = {
        name: _Layer(unit)
        for name, unit in norm_layers(model, pattern).items()
        if isinstance(unit, ProxyNormAct)
    }
    if not layers:
        return {}

    def take(layer: _Layer) -> Any:
        return lambda _, inputs: layer.update(inputs[0].detach())

    handles: List[Any] = [
        layer.unit.register_forward_pre_hook(take(layer)) for layer in layers.values()
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: layer.result() for name, layer in layers.items() if layer.count}
