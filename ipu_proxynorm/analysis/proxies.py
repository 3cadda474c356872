"""Proxy Norm with other moments than the proxy's: a diagnosis, which depends on the batch.

Proxy Norm centres and scales the activation with the moments that it would have if the
pre-activation were the Gaussian that the proxy assumes. What that assumption costs shows when the
moments are replaced: by those of the micro-batch itself, or by their running average. Both tie an
image to its micro-batch, which Proxy Norm is there to avoid: they are no norm to train with.
"""

from __future__ import annotations

from typing import Callable, Dict, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ipu_proxynorm.errors import UserError, unknown_name
from ipu_proxynorm.norm import GroupNormAct, ProxyNormAct
from ipu_proxynorm.norm.pending import per_channel
from ipu_proxynorm.norm.places import replace_submodules

ASSUMED, FROZEN, RUNNING, TRUE = "assumed", "frozen", "running", "true"


class InPlaceOf(GroupNormAct):
    """Group Norm and activation of a unit with Proxy Norm, whose place and γ and β it takes.

    Args:
        like: that unit.
    """

    def __init__(self, like: ProxyNormAct) -> None:
        super().__init__(
            like.num_features,
            like.activation,
            spec=f"gn{like.num_groups}",
            eps=like.eps,
            channel_grouping=like.channel_grouping,
            device=like.weight.device,
            dtype=like.weight.dtype,
        )
        self.weight, self.bias = like.weight, like.bias


class MeasuredMomentsAct(InPlaceOf):
    """Group Norm, activation, and normalization of each channel with moments of the activation.

    ``weight`` γ and ``bias`` β as of `ProxyNormAct`; ``running_mean`` and ``running_var``, both
    (C,), begin at the moments that the proxy assumes.

    Args:
        like: the unit whose place it takes.
        kind: ``running`` or ``true``.
        momentum: the part of a micro-batch in the running averages.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, like: ProxyNormAct, kind: str, momentum: float = 0.1) -> None:
        super().__init__(like)
        self.kind, self.momentum, self.proxy_eps = kind, momentum, like.proxy_eps
        with torch.no_grad():
            mean, variance = like.moments()
        self.register_buffer("running_mean", mean.clone())
        self.register_buffer("running_var", variance.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Normalize, activate and normalize again x (N, C, *)."""
        z = super().forward(x)
        if self.kind == TRUE and self.training:
            running = self.running_mean, self.running_var
            return F.batch_norm(
                z, *running, training=True, momentum=self.momentum, eps=self.proxy_eps
            )
        if self.training:
            self._average(z.detach())
        scale = torch.rsqrt(self.running_var + self.proxy_eps)
        return (z - per_channel(self.running_mean, z)) * per_channel(scale, z)

    def _average(self, z: Tensor) -> None:
        values = z.transpose(0, 1).flatten(1)  # (C, N·H·W)
        mean = values.mean(1)
        variance = (values - mean.unsqueeze(1)).square().mean(1)
        for running, found in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_((1 - self.momentum) * running + self.momentum * found)


class Proxy(NamedTuple):
    """What is taken for the moments of the activation.

    Args:
        meaning: in words.
        replaced: returns what takes a unit's place: itself, changed or not, or another.
    """

    meaning: str
    replaced: Callable[[ProxyNormAct], nn.Module]


def _frozen(unit: ProxyNormAct) -> ProxyNormAct:
    unit.proxy_weight.requires_grad_(False)
    unit.proxy_bias.requires_grad_(False)
    return unit


#: By the name that ``--proxy`` gives it. What tries a proxy of its own adds to it
#: (benchmarks/better_proxy.py).
PROXIES: Dict[str, Proxy] = {
    ASSUMED: Proxy("the proxy's, with β̃ and γ̃ learned: Proxy Norm", lambda unit: unit),
    FROZEN: Proxy("the proxy's, with β̃ and γ̃ at 0", _frozen),
    RUNNING: Proxy(
        "the running average of the activation's own, as constants",
        lambda unit: MeasuredMomentsAct(unit, RUNNING),
    ),
    TRUE: Proxy(
        "the activation's own over the micro-batch, their gradients included; in evaluation the "
        "running average",
        lambda unit: MeasuredMomentsAct(unit, TRUE),
    ),
}


def replace_proxies(model: nn.Module, kind: str) -> int:
    """Give the units of Proxy Norm in a network other moments than the proxy's; return how many.

    Before training: parameters that have no part any more are gone or do not train.

    Args:
        model: a network with Proxy Norm, of this package's units.
        kind: one of `PROXIES`.

    Raises:
        UserError: there is no such kind, or the network has no Proxy Norm.
    """
    if kind not in PROXIES:
        raise unknown_name("--proxy:", kind, list(PROXIES))
    units = [m for m in model.modules() if isinstance(m, ProxyNormAct) and m is not model]
    if not units:
        raise UserError(f"--proxy={kind}: the network has no Proxy Norm; expected a norm with +pn")
    replace_submodules(
        model, lambda unit: PROXIES[kind].replaced(unit) if isinstance(unit, ProxyNormAct) else None
    )
    return len(units)
