"""The activations that Proxy Norm knows, and how the Gaussian moments of each are computed."""

from __future__ import annotations

import copy
import difflib
import functools
import math
from dataclasses import dataclass
from typing import Any, Callable, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ActivationLike = Union[str, nn.Module, "type[nn.Module]", Callable[[Tensor], Tensor]]
aten = torch.ops.aten

# Where torch keeps functions of a tensor.
_PLACES: Tuple[Any, ...] = (F, torch, Tensor, torch._C._nn)


@dataclass(frozen=True)
class PiecewiseLinear:
    """A continuous piecewise-linear function of one variable.

    Attributes:
        knots: where the slope changes, ascending.
        slopes: one more than knots, from left to right.
        intercept: value at 0 of the leftmost piece, extended.

    """

    knots: Tuple[float, ...]
    slopes: Tuple[float, ...]
    intercept: float = 0.0


@dataclass(frozen=True)
class Clamp:
    """The function clamp(scale·x + offset, lower, upper), which folds into a norm before it."""

    scale: float = 1.0
    offset: float = 0.0
    lower: float = -math.inf
    upper: float = math.inf


@dataclass(frozen=True)
class Activation:
    """An activation function and what the moments and the backward pass need to know of it.

    Attributes:
        name: what it is called in specs and reprs.
        function: element-wise, any shape to the same shape.
        backward: (gradient, input) to the gradient of the input; None when unknown, and then
            left to autograd.
        pieces: set when it is piecewise linear: its moments have a closed form.
        clamp: set when it is a clamp: the whole block folds into the norm.
        homogeneous: φ(a x) = a φ(x) for a > 0, and φ keeps the sign: the scale folds.
        nodes: number of nodes of the quadrature, where there is no closed form.
        reach: the quadrature's range, in standard deviations of the proxy variable.
        backward_: ``backward`` written over its second argument, where torch has such.

    """

    name: str
    function: Callable[[Tensor], Tensor]
    backward: Optional[Callable[[Tensor, Tensor], Tensor]] = None
    pieces: Optional[PiecewiseLinear] = None
    clamp: Optional[Clamp] = None
    homogeneous: bool = False
    nodes: int = 128
    reach: float = 6.5
    backward_: Optional[Callable[[Tensor, Tensor], Tensor]] = None

    @property
    def folds(self) -> bool:
        """Whether the proxy's scale, at least, folds into the norm before it."""
        return self.clamp is not None or self.homogeneous

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(x)


def _identity(x: Tensor) -> Tensor:
    return x


def _identity_backward(grad: Tensor, x: Tensor) -> Tensor:
    return grad


def _relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.threshold_backward(grad, x, 0.0)


def _hardtanh_backward(lower: float, upper: float, grad: Tensor, x: Tensor) -> Tensor:
    return aten.hardtanh_backward(grad, x, lower, upper)


def _leaky_relu_backward(negative_slope: float, grad: Tensor, x: Tensor) -> Tensor:
    return aten.leaky_relu_backward(grad, x, negative_slope, False)


def _gelu_backward(approximate: str, grad: Tensor, x: Tensor) -> Tensor:
    return aten.gelu_backward(grad, x, approximate=approximate)


def _sigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.sigmoid_backward(grad, torch.sigmoid(x))


def _tanh_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.tanh_backward(grad, torch.tanh(x))


def _silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.silu_backward(grad, x)


def _silu_backward_(grad: Tensor, x: Tensor) -> Tensor:
    return aten.silu_backward.grad_input(grad, x, grad_input=x)


def _gelu_backward_(approximate: str, grad: Tensor, x: Tensor) -> Tensor:
    return aten.gelu_backward.grad_input(grad, x, approximate=approximate, grad_input=x)


def _mish_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.mish_backward(grad, x)


def _hardswish_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.hardswish_backward(grad, x)


def _hardsigmoid_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.hardsigmoid_backward(grad, x)


def _softplus_backward(grad: Tensor, x: Tensor) -> Tensor:
    return aten.softplus_backward(grad, x, 1.0, 20.0)


def leaky_relu(negative_slope: float = 0.01) -> Activation:
    """Return leaky ReLU with the given slope below zero."""
    return Activation(
        "leaky_relu" if negative_slope == 0.01 else f"leaky_relu({negative_slope:g})",
        functools.partial(F.leaky_relu, negative_slope=negative_slope),
        functools.partial(_leaky_relu_backward, negative_slope),
        PiecewiseLinear((0.0,), (negative_slope, 1.0)),
        homogeneous=negative_slope > 0,
    )


def hardtanh(lower: float = -1.0, upper: float = 1.0) -> Activation:
    """Return the identity clamped to [lower, upper], either of which may be infinite."""
    if upper == math.inf and lower in (0.0, -math.inf):
        return ACTIVATIONS["relu" if lower == 0 else "identity"]
    names = {(-1.0, 1.0): "hardtanh", (0.0, 6.0): "relu6"}
    below, above = not math.isinf(lower), not math.isinf(upper)
    if below and above:
        function = functools.partial(F.hardtanh, min_val=lower, max_val=upper)
    else:
        function = functools.partial(torch.clamp, **({"min": lower} if below else {"max": upper}))
    return Activation(
        names.get((lower, upper), f"hardtanh({lower:g}, {upper:g})"),
        function,
        functools.partial(_hardtanh_backward, lower, upper),
        PiecewiseLinear(
            (*([lower] * below), *([upper] * above)),
            (*([0.0] * below), 1.0, *([0.0] * above)),
            intercept=lower if below else 0.0,
        ),
        Clamp(lower=lower, upper=upper),
    )


# Nodes and reach of the smooth ones: the fewest (even) that bring mean and sqrt(Var + 0.03) within
# 1e-6, a few times float32's own error, for all centers and scales up to 4.5 (|γ|, |β| ≤ 3,
# |β̃|, |γ̃| ≤ 0.5).
ACTIVATIONS = {
    activation.name: activation
    for activation in (
        Activation("identity", _identity, _identity_backward, PiecewiseLinear((), (1.0,)), Clamp()),
        Activation(
            "relu", F.relu, _relu_backward, PiecewiseLinear((0.0,), (0.0, 1.0)), Clamp(lower=0.0)
        ),
        hardtanh(0.0, 6.0),
        hardtanh(),
        Activation(
            "hardsigmoid",
            F.hardsigmoid,
            _hardsigmoid_backward,
            PiecewiseLinear((-3.0, 3.0), (0.0, 1 / 6, 0.0)),
            Clamp(scale=1 / 6, offset=0.5, lower=0.0, upper=1.0),
        ),
        leaky_relu(),
        Activation("hardswish", F.hardswish, _hardswish_backward),
        Activation("silu", F.silu, _silu_backward, nodes=46, reach=5.7, backward_=_silu_backward_),
        Activation(
            "gelu",
            F.gelu,
            functools.partial(_gelu_backward, "none"),
            nodes=56,
            reach=5.9,
            backward_=functools.partial(_gelu_backward_, "none"),
        ),
        Activation(
            "gelu_tanh",
            functools.partial(F.gelu, approximate="tanh"),
            functools.partial(_gelu_backward, "tanh"),
            nodes=56,
            reach=5.9,
            backward_=functools.partial(_gelu_backward_, "tanh"),
        ),
        Activation("sigmoid", torch.sigmoid, _sigmoid_backward, nodes=44, reach=5.2),
        Activation("tanh", torch.tanh, _tanh_backward, nodes=78, reach=5.3),
        Activation("softplus", F.softplus, _softplus_backward, nodes=38, reach=5.9),
        Activation("mish", F.mish, _mish_backward, nodes=58, reach=5.9),
    )
}
_ALIASES = {
    "swish": "silu",
    "linear": "identity",
    "leakyrelu": "leaky_relu",
    "hard_swish": "hardswish",
    "hard_sigmoid": "hardsigmoid",
}


def resolve_activation(activation: ActivationLike) -> Activation:
    """Return what is known of an activation given by name, torch module (or its class) or callable.

    A callable that is not known is taken as it is, and its moments by quadrature. Of torch's
    functions and modules that write over their argument the form is taken that does not.

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
    name = name_in_torch(function)
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if name:
        in_place = name != function.__name__
        forms = [getattr(place, name) for place in _PLACES if in_place and hasattr(place, name)]
        return Activation(name, forms[0] if forms else function)
    name = getattr(function, "__name__", "") or repr(function)
    if name in ACTIVATIONS:  # somebody's own function, which may compute something else
        name = f"{getattr(function, '__module__', None) or type(function).__name__}.{name}"
    return Activation(name, function)


def name_in_torch(function: Any) -> str:
    """Return the name of a function or method of torch's, without the mark of in-place ones.

    Empty: it is somebody else's.
    """
    name = getattr(function, "__name__", "")
    theirs = any(getattr(place, name, None) is function for place in _PLACES)
    return name.rstrip("_") if theirs else ""


def _out_of_place(module: nn.Module) -> nn.Module:
    """Return an activation module, or where it writes over its argument one that does not."""
    if not getattr(module, "inplace", False):
        return module
    module = copy.copy(module)
    module.inplace = False  # type: ignore[assignment]
    return module


def _from_module(module: nn.Module) -> Activation:
    # By exact class: a subclass may compute something else.
    if type(module) is nn.LeakyReLU:
        return leaky_relu(module.negative_slope)
    if isinstance(module, nn.Hardtanh) and type(module) in (nn.Hardtanh, nn.ReLU6):
        return hardtanh(module.min_val, module.max_val)
    if type(module) is nn.GELU:
        return ACTIVATIONS["gelu" if module.approximate == "none" else "gelu_tanh"]
    if type(module) is nn.Softplus and (module.beta, module.threshold) != (1, 20):
        return Activation(repr(module), module)
    by_class = {
        nn.Identity: "identity",
        nn.ReLU: "relu",
        nn.Hardsigmoid: "hardsigmoid",
        nn.Hardswish: "hardswish",
        nn.SiLU: "silu",
        nn.Sigmoid: "sigmoid",
        nn.Tanh: "tanh",
        nn.Softplus: "softplus",
        nn.Mish: "mish",
    }
    name = by_class.get(type(module))
    if name:
        return ACTIVATIONS[name]
    module = _out_of_place(module)
    return Activation(repr(module), module)
