"""A unit's output whose last steps are left to who reads it, and how readers take them over.

Proxy Norm ends in a scale per channel. On every element it costs a multiplication, and for the
backward pass a copy of what it multiplies. A convolution or product behind it takes the scale into
the weights of its input channels: the same function, zero padding included. Where nothing is padded
it can take a shift, too, as a bias: what it reads is then what ReLU's gradient reads, one tensor.
A mean over space takes scale and shift behind it. Readers accept a tensor or a `Pending` alike.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Tuple, Union

from torch import Tensor
from torch.nn import functional as F


class Pending(NamedTuple):
    """The output (value + shift)·scale, not computed yet.

    Attributes:
        value: (N, C, *).
        scale: (C,), float32 or the value's dtype; None: 1.
        shift: (C,), likewise; None: no shift is left.
    """

    value: Tensor
    scale: Optional[Tensor] = None
    shift: Optional[Tensor] = None


Output = Union[Tensor, Pending]


def per_channel(parameter: Tensor, x: Tensor) -> Tensor:
    """View a parameter (C,) as (1, C, 1, …) so that it broadcasts over x (N, C, *)."""
    return parameter.view(1, -1, *([1] * (x.dim() - 2)))


def finished(x: Output) -> Tensor:
    """Return the output itself, shape and dtype of the value (N, C, *)."""
    if not isinstance(x, Pending):
        return x
    value = x.value if x.shift is None else shifted(x.value, x.shift)
    return value if x.scale is None else value * per_channel(x.scale, value).to(value.dtype)


def shifted(z: Tensor, shift: Tensor) -> Tensor:
    """Return z (N, C, *) plus a shift (C,), in z's dtype.

    An addition: a subtraction's backward pass negates the gradient of every element before it sums
    it. In float16 the sum is rounded once, as that of β's gradient is.
    """
    return z + per_channel(shift, z).to(z.dtype)


def read(
    x: Output,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    groups: int = 1,
    *,
    padded: bool = False,
) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """Return value, weights and bias that make a convolution or product of an output, in its type.

    Args:
        x: (N, C, *).
        weight: (C_out, C / groups, *).
        bias: (C_out,), or None.
        groups: of the convolution.
        padded: whether the convolution pads what it reads.

    Raises:
        ValueError: a shift is left, which padding would not see.
    """
    value = x.value if isinstance(x, Pending) else x
    if isinstance(x, Pending):
        if x.shift is not None and padded:
            raise ValueError("a shift is left to a convolution that pads, which takes a scale only")
        weight, bias = taken_over(x, weight, bias, groups)
    bias = None if bias is None else as_activations(bias, value)
    return value, as_activations(weight, value), bias


def taken_over(
    x: Pending, weight: Tensor, bias: Optional[Tensor] = None, groups: int = 1
) -> Tuple[Tensor, Optional[Tensor]]:
    """Return weights and bias that read a pending value as they would the output.

    Args:
        x: whose scale and shift they take over.
        weight: (C_out, C / groups, *).
        bias: (C_out,), or None.
        groups: of the convolution, which pads nothing where there is a shift.
    """
    if x.scale is not None:
        weight = scaled_weight(weight, x.scale, groups)
    if x.shift is not None:
        added = scaled_weight(weight, x.shift, groups).flatten(1).sum(1)
        bias = added if bias is None else bias + added
    return weight, bias


def as_activations(parameter: Tensor, input: Tensor) -> Tensor:
    """Return a layer's parameter in the type of its input; itself where it is of that type."""
    return parameter if parameter.dtype == input.dtype else parameter.to(input.dtype)


def scaled_weight(weight: Tensor, scale: Tensor, groups: int = 1) -> Tensor:
    """Return the weights that read a value as they would its product with a scale.

    Args:
        weight: (C_out, C / groups, *) of a convolution or of a linear layer.
        scale: (C,), of the input channels.
        groups: of the convolution.

    Returns:
        Shape and dtype of the weight.
    """
    scale = scale.to(weight.dtype)
    rest = [1] * (weight.dim() - 2)
    if groups == 1:
        return weight * scale.view(1, -1, *rest)
    outputs, inputs = weight.shape[:2]
    split = weight.view(groups, outputs // groups, *weight.shape[1:])
    return (split * scale.view(groups, 1, inputs, *rest)).view(weight.shape)


def spatial_mean(x: Output) -> Tensor:
    """Return the mean of an output (N, C, H, W) over space, (N, C, 1, 1), in its dtype."""
    if not isinstance(x, Pending):
        return F.adaptive_avg_pool2d(x, 1)
    return finished(x._replace(value=F.adaptive_avg_pool2d(x.value, 1)))
