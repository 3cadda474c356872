"""Norm, activation and Proxy Norm as one module, and to whom it leaves its scale."""

from __future__ import annotations

import math
import sys
from typing import Any, Callable, Collection, Dict, NamedTuple, Optional, Tuple, Union, cast

import torch
from torch import Tensor, nn

from ipu_proxynorm.norm.activations import ActivationLike, Clamp
from ipu_proxynorm.norm.conv import takes_shift
from ipu_proxynorm.norm.execution import (
    device_grouping,
    hands_on,
    may_use_custom_backward,
    own_precision,
)
from ipu_proxynorm.norm.functional import (
    Constants,
    check_channels,
    native_float16,
    proxied_unit,
    unit_constants,
)
from ipu_proxynorm.norm.fused import Prepared, fused_norm_act, prepare
from ipu_proxynorm.norm.moments.gaussian import METHODS, proxy_moments
from ipu_proxynorm.norm.pending import Output, Pending, finished, shifted
from ipu_proxynorm.norm.spec import NormSpec
from ipu_proxynorm.norm.standing_in import StandIn
from ipu_proxynorm.norm.units import ActOnly, BatchNormAct, GroupNormAct, check_eps

# What `share_moments` hands to a layer for one forward pass: for the custom backward, or for plain
# operators, with its place in autograd's graph.
Shared = Union[None, Prepared, Constants, Tuple[Tensor, Tensor]]
# Weights take the scale where they are no more than what the unit makes of so many images: about
# the micro-batch at which memory runs out.
_IMAGES = 16
# A bias costs operators of the weights' size, and saves a byte of what the unit makes.
_IMAGES_OF_BIAS = 2
_RELU = Clamp(lower=0.0)


class Readers(NamedTuple):
    """Who reads a unit, and so takes the scale of Proxy Norm over, or its shift.

    Attributes:
        weights: elements of the weights that would take it; 0: a gate or a mean does.
        as_bias: none of them pads what it reads: of a shift they make a bias.
        shift_too: the mean over space is all that is read: it takes the shift, too.
        foreign: who reads knows nothing of `Pending` and is given a `StandIn`.
    """

    weights: int = 0
    shift_too: bool = False
    foreign: bool = False
    as_bias: bool = False


class ProxyNormAct(GroupNormAct):
    """Group Norm, activation and Proxy Norm.

    Parameters: ``weight`` γ, ``bias`` β, ``proxy_weight`` γ̃ and ``proxy_bias`` β̃, all (C,).
    """

    proxy_weight: nn.Parameter
    proxy_bias: nn.Parameter
    bias: nn.Parameter
    readers: Optional[Readers] = None  # see `hand_on_to`
    scale_rule: str = "applied"  # see `leave_scale`
    # Computes the unit within `plain_operators`, from itself, x and constants of which nothing is
    # folded, in place of plain operators.
    operator: Optional[Callable[[ProxyNormAct, Tensor, Constants], Tensor]] = None

    def __init__(
        self,
        num_features: int,
        act_layer: ActivationLike = "relu",
        *,
        spec: Union[str, NormSpec] = "ln+pn",
        eps: float = 1e-5,
        proxy_eps: float = 0.03,
        method: str = "exact",
        n: int = 200,
        recompute: bool = False,
        channel_grouping: str = "contiguous",
        device: Any = None,
        dtype: Any = None,
    ):
        if method not in METHODS:
            raise ValueError(f"unknown method '{method}': expected one of {', '.join(METHODS)}")
        super().__init__(
            num_features,
            act_layer,
            spec=spec,
            eps=eps,
            channel_grouping=channel_grouping,
            device=device,
            dtype=dtype,
        )
        self.proxy_eps = check_eps("proxy_eps", proxy_eps)
        self.method = method
        self.n = n
        self.recompute = recompute
        self.proxy_weight = nn.Parameter(torch.empty_like(self.weight))
        self.proxy_bias = nn.Parameter(torch.empty_like(self.weight))
        self.reset_parameters()
        self._shared: Shared = None

    @property
    def moment_parameters(self) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """γ, β, γ̃, β̃: what the proxy's moments depend on."""
        return self.weight, self.bias, self.proxy_weight, self.proxy_bias

    def moments(self) -> Tuple[Tensor, Tensor]:
        """Return mean and variance of the activation of the proxy variable, each (C,)."""
        return proxy_moments(*self.moment_parameters, self.activation, method=self.method, n=self.n)

    def prepare(self) -> Prepared:
        """Return what the custom backward needs per channel."""
        return prepare(
            *self.moment_parameters,
            self.activation,
            proxy_eps=self.proxy_eps,
            method=self.method,
            n=self.n,
        )

    def use_moments(self, moments: Shared) -> None:
        """Take these moments in the next forward pass, in place of its own.

        Args:
            moments: mean and variance, each ``(C,)``, as `moments` returns them, what `prepare`
                returns for the custom backward, or the plain operators' constants; None: its own
                after all.
        """
        self._shared = moments

    @property
    def folds(self) -> bool:
        """Whether scale and shift fold into the norm as far as the activation allows it."""
        whole = self.leaves_all or self.scale_rule != "applied" or self._has_operator
        return self.activation.folds and not whole

    @property
    def _has_operator(self) -> bool:
        native = not self.grouping_matters or self.channel_grouping == device_grouping()
        return self.operator is not None and hands_on() and native

    @property
    def leaves_all(self) -> bool:
        """Whether shift and scale are left to the mean over space, so that nothing folds."""
        return self.readers is not None and self.readers.shift_too and hands_on()

    @property
    def may_leave_shift(self) -> bool:
        """Whether readers may take a ReLU's shift over here, so that its output alone is kept."""
        return hands_on() and self.folds and self.leaves_shift_on(sys.maxsize)

    def leaves_shift_on(self, elements: int) -> bool:
        """Return whether the shift goes to the readers of this unit's output, were there any here.

        Args:
            elements: of the output, of one image.
        """
        if self.readers is None or not self.readers.as_bias or self.activation.clamp != _RELU:
            return False
        return 0 < self.readers.weights <= _IMAGES_OF_BIAS * elements

    def constants_in(
        self, activations: Optional[torch.dtype]
    ) -> Tuple[Optional[torch.dtype], Optional[torch.dtype]]:
        """Return the types of the unit's constants, and of what goes to readers.

        What weights take is of the weights' type.

        Args:
            activations: their type.
        """
        if self.readers is not None and self.readers.weights:
            return activations, self.weight.dtype
        return activations, activations

    def hands_scale_on(self, elements: int) -> bool:
        """Return whether the scale goes to the readers of this unit's output, were there any here.

        Args:
            elements: of the output, of one image.
        """
        if self.readers is None:
            return False
        if self.readers.shift_too:
            return True
        return not self.activation.folds and self.readers.weights <= _IMAGES * elements

    def forward(self, x: Tensor) -> Output:  # type: ignore[override]
        """Normalize, activate and proxy-normalize x (N, C, *), in x's dtype also under autocast.

        Within `plain_operators`, a unit whose readers are known leaves its scale to them.
        """
        check_channels(x, self.num_features)
        with own_precision(x.device.type):
            return self._forward(x)

    def _forward(self, x: Tensor) -> Output:
        shared, self._shared = self._shared, None
        if self.scale_rule != "applied":
            return self._centered(x, shared)
        if self._may_fuse(x):
            return fused_norm_act(
                x,
                self.num_groups,
                self.moment_parameters,
                self.activation,
                shared if isinstance(shared, Prepared) else self.prepare(),
                eps=self.eps,
                proxy_eps=self.proxy_eps,
                method=self.method,
                n=self.n,
                recompute=self.recompute,
            )
        if not native_float16(x) and may_use_custom_backward(x):
            return finished(self._plain(x.float(), shared)).to(x.dtype)
        if self._has_operator:
            return self._by_operator(x, shared)
        out = self._plain(x, shared)
        if not isinstance(out, Pending):
            return out
        hand_on = out.scale is None or self.hands_scale_on(math.prod(x.shape[1:]))
        if not hand_on or not hands_on():
            return finished(out)
        foreign = self.readers is not None and self.readers.foreign
        # What stands in for a tensor is read as one.
        return cast(Tensor, StandIn(out)) if foreign else out

    def _centered(self, x: Tensor, shared: Shared) -> Output:
        """Return the unit less its scale, in plain operators on every device."""
        if not native_float16(x) and may_use_custom_backward(x):
            out = self._plain(x.float(), shared)
        else:
            out = self._plain(x, shared)
        assert isinstance(out, Pending)
        value = out.value if out.shift is None else shifted(out.value, out.shift)
        value = value.to(x.dtype)
        return value if self.scale_rule == "dropped" else Pending(value, out.scale)

    def _by_operator(self, x: Tensor, shared: Shared) -> Tensor:
        assert self.operator is not None
        return self.operator(self, x, self._constants(shared))

    def _constants(self, shared: Shared) -> Constants:
        if isinstance(shared, Constants):
            return shared
        mean, variance = (
            self.moments() if shared is None or isinstance(shared, Prepared) else shared
        )
        return unit_constants(
            *(self.weight, self.bias, mean, torch.rsqrt(variance + self.proxy_eps)),
            *(self.activation, self.folds, self.may_leave_shift),
        )

    def _plain(self, x: Tensor, shared: Shared) -> Output:
        return proxied_unit(
            *(x, self.num_groups, self._constants(shared), self.activation),
            eps=self.eps,
            grouping=self.channel_grouping,
            shift_too=self.leaves_all,
            leave_shift=self.leaves_shift_on(math.prod(x.shape[1:])),
        )

    def _may_fuse(self, x: Tensor) -> bool:
        return (
            self.activation.backward is not None
            and may_use_custom_backward(x, self.weight)
            and not (self.grouping_matters and self.channel_grouping == "strided")
            and (x.dtype == torch.float64) == (self.weight.dtype == torch.float64)
            and x.numel() > 0
        )

    def __getstate__(self) -> Dict[str, Any]:
        """Leave out what is shared for the time of one forward pass."""
        return {**self.__dict__, "_shared": None}

    def extra_repr(self) -> str:
        """Return what the constructor was told."""
        method = self.method if self.method == "exact" else f"{self.method}, n={self.n}"
        recompute = ", recompute=True" if self.recompute else ""
        rule = "" if self.scale_rule == "applied" else f", scale {self.scale_rule}"
        return (
            f"{super().extra_repr()}, proxy_eps={self.proxy_eps}, method={method}{recompute}{rule}"
        )


def hand_on_to(unit: nn.Module, *readers: nn.Module, shift_too: bool = False) -> None:
    """Say who reads a unit's output, so that it can hand its scale to them; state stays as it is.

    Within `plain_operators` a unit with Proxy Norm then returns a `Pending` where that is cheaper,
    which each of the readers must take.

    Args:
        unit: of any norm; nothing happens to one without Proxy Norm.
        readers: the convolutions and linear layers, of this package, that read nothing else of it;
            none: what reads it multiplies with a number per image and channel anyway.
        shift_too: only the mean over space is read (`spatial_mean`).
    """
    if isinstance(unit, ProxyNormAct):
        unit.readers = readers_of(readers, shift_too=shift_too)


def readers_of(
    layers: Collection[nn.Module], *, shift_too: bool = False, foreign: bool = False
) -> Readers:
    """Return what a unit must know of the convolutions and products that read it.

    Args:
        layers: those.
        shift_too: see `Readers`.
        foreign: see `Readers`.
    """
    weights = [p.numel() for layer in layers for p in layer.parameters() if p.dim() > 1]
    return Readers(sum(weights), shift_too, foreign, all(map(takes_shift, layers)))


def leave_scale(unit: nn.Module, rule: str) -> None:
    """Change a unit's function: leave its scale out of what is read, on every device.

    Args:
        unit: of any norm; nothing happens to one without Proxy Norm.
        rule: ``left``: it returns a `Pending`, and its reader decides; ``dropped``: the scale has
            no part in it. Both are in the published EfficientNets.
    """
    if rule not in ("left", "dropped"):
        raise ValueError(f"unknown rule '{rule}': expected left or dropped")
    if isinstance(unit, ProxyNormAct):
        unit.readers, unit.scale_rule = None, rule


NormAct = Union[ActOnly, BatchNormAct, GroupNormAct, ProxyNormAct]
