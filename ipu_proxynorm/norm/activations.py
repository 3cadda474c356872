"""The activations that Proxy Norm knows, and how the Gaussian moments of each are had."""

from __future__ import annotations

import difflib
import functools
from dataclasses import dataclass
from typing import Callable, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ActivationLike = Union[str, nn.Module, "type[nn.Module]", Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class PiecewiseLinear:
    """A continuous piecewise-linear function of one variable.

    Attributes:
        knots: where the slope changes, ascending.
        slopes: one more than knots, from left to right.

    """

    knots: Tuple[float, ...]
    slopes: Tuple[float, ...]


@dataclass(frozen=True)
class Activation:
    """An activation function and what the moments need to know of it.

    Attributes:
        name: what it is called in specs and reprs.
        function: element-wise, any shape to the same shape.
        pieces: set when it is piecewise linear: moments have a closed form, and the block folds.
        nodes: number of nodes of the quadrature, for the others.
        reach: the quadrature's range, in standard deviations of the proxy variable.

    """

    name: str
    function: Callable[[Tensor], Tensor]
    pieces: Optional[PiecewiseLinear] = None
    nodes: int = 96
    reach: float = 6.0

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


def _identity(x: Tensor) -> Tensor:
    return x


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """Return leaky ReLU with the given slope below zero."""
    return Activation(
        "leaky_relu" if negative_slope == 0.01 else f"leaky_relu({negative_slope:g})",
        functools.partial(F.leaky_relu, negative_slope=negative_slope),
        PiecewiseLinear((0.0,), (negative_slope, 1.0)),
    )


ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("identity", _identity, PiecewiseLinear((), (1.0,))),
        Activation("relu", F.relu, PiecewiseLinear((0.0,), (0.0, 1.0))),
        Activation("relu6", F.relu6, PiecewiseLinear((0.0, 6.0), (0.0, 1.0, 0.0))),
        leaky_relu(),
        Activation("silu", F.silu),
        Activation("gelu", F.gelu),
        Activation("gelu_tanh", _gelu_tanh),
        Activation("sigmoid", torch.sigmoid),
        Activation("tanh", torch.tanh),
        Activation("softplus", F.softplus),
        Activation("mish", F.mish),
    )
}
_ALIASES = {"swish": "silu", "linear": "identity", "leakyrelu": "leaky_relu"}


def resolve_activation(activation: ActivationLike) -> Activation:
    """Return what is known of an activation given by name, torch module (or its class) or callable.

    A callable that is not known is taken as it is, and its moments by quadrature.

    Raises:
        ValueError: an unknown name.
        TypeError: neither a name nor callable.

    """
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, str):
        name = activation.lower()
        name = _ALIASES.get(name, name)
        if name not in ACTIVATIONS:
            near = difflib.get_close_matches(name, [*ACTIVATIONS, *_ALIASES], n=1)
            raise ValueError(
                f"unknown activation '{activation}': expected one of {', '.join(ACTIVATIONS)}, "
                "or a callable" + (f"; did you mean '{near[0]}'?" if near else "")
            )
        return ACTIVATIONS[name]
    function = activation() if isinstance(activation, type) else activation
    if isinstance(function, nn.Module):
        return _from_module(function)
    for known in ACTIVATIONS.values():
        if function is known.function:
            return known
    if not callable(function):
        raise TypeError(f"activation must be a name, a module or a callable, got {function!r}")
    return Activation(getattr(function, "__name__", repr(function)), function)


def _from_module(module: nn.Module) -> Activation:
    if isinstance(module, nn.LeakyReLU):
        return leaky_relu(module.negative_slope)
    if isinstance(module, nn.GELU):
        return ACTIVATIONS["gelu" if module.approximate == "none" else "gelu_tanh"]
    if isinstance(module, nn.Softplus) and (module.beta, module.threshold) != (1, 20):
        return Activation(repr(module), module)
    by_class = {
        nn.Identity: "identity",
        nn.ReLU: "relu",
        nn.ReLU6: "relu6",
        nn.SiLU: "silu",
        nn.Sigmoid: "sigmoid",
        nn.Tanh: "tanh",
        nn.Softplus: "softplus",
        nn.Mish: "mish",
    }
    name = by_class.get(type(module))  # a subclass may compute something else
    return ACTIVATIONS[name] if name else Activation(repr(module), module)
