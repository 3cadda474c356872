"""Proxy Norm as a custom operator of PopART: opt-in, and never compiled or run on an IPU so far.

``popart/proxy_norm_op.cpp`` computes a whole unit in two passes and keeps its input alone, 4 bytes
an element in float16 with the next convolution's input instead of 5 (ReLU) or 6 (SiLU). ``make``
beside it, with the SDK enabled, makes the library. On the simulator the operator computes what
stands in `proxy_norm_unit`, and no library is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Union

from torch import Tensor, nn

from ipu_proxynorm.backend import custom_operator, poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm import Pending, ProxyNormAct, finished, group_norm, resolve_activation
from ipu_proxynorm.norm.execution import device_grouping
from ipu_proxynorm.norm.functional import Constants
from ipu_proxynorm.norm.pending import shifted

#: The C++ source, and the Makefile beside it.
SOURCE = Path(__file__).parent / "popart" / "proxy_norm_op.cpp"
DOMAIN, NAME, VERSION = "ipu.proxynorm", "ProxyNormUnit", 1
INPUTS = ("x", "weight", "bias", "shift", "scale")
ATTRIBUTES = ("num_groups", "epsilon", "activation")
ACTIVATIONS = ("relu", "silu")


def proxy_norm_unit(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    shift: Tensor,
    scale: Tensor,
    num_groups: int,
    epsilon: float,
    activation: str,
) -> Tensor:
    """Return (φ(norm(x)·weight + bias) + shift)·scale, which the operator computes.

    Args:
        x: shape (N, C, *).
        weight: γ, shape (C,), in x's dtype as all that follow.
        bias: β.
        shift: −E of the proxy's activation.
        scale: 1 / sqrt(Var + ε).
        num_groups: of the norm.
        epsilon: of the norm.
        activation: one of `ACTIVATIONS`.
    """
    y = group_norm(x, num_groups, weight, bias, epsilon, grouping=device_grouping())
    z = resolve_activation(activation)(y)
    return finished(Pending(shifted(z, shift), scale))


def _call(layer: ProxyNormAct, x: Tensor, constants: Constants) -> Tensor:
    values = (constants.weight, constants.bias, constants.shift, constants.scale)
    cast = [value.to(x.dtype) for value in values if value is not None]
    (out,) = poptorch.custom_op(
        [x, *cast],
        NAME,
        DOMAIN,
        VERSION,
        example_outputs=[x],
        attributes={
            "num_groups": layer.num_groups,
            "epsilon": layer.eps,
            "activation": layer.activation.name,
        },
    )
    result: Tensor = out
    return result


def use_custom_operator(model: nn.Module, library: Union[str, Path]) -> int:
    """Let programs compute the Proxy Norm units of a model with the custom operator.

    State dict, and everything outside of programs, stay as they are. Units of other activations
    than `ACTIVATIONS`, and of channel groups other than the device's, stay plain operators.

    Args:
        model: changed in place.
        library: what ``make`` built of `SOURCE`; the simulator does not look at it.

    Returns:
        The number of units.

    Raises:
        UserError: there is no such unit, or the library cannot be loaded.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, ProxyNormAct)
        and layer.activation.name in ACTIVATIONS
        and layer.scale_rule == "applied"
    ]
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no Proxy Norm unit with one of {', '.join(ACTIVATIONS)}: "
            "expected a norm spec with +pn, e.g. ln+pn"
        )
    custom_operator(str(library), NAME, DOMAIN, proxy_norm_unit)
    for layer in layers:
        layer.operator = _call
    return len(layers)
