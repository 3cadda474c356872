"""The inference form: moments are constants then, and Proxy Norm disappears into the norm."""

from __future__ import annotations

import copy
import math
from typing import Callable, Dict, List, Optional, Union

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.conv import Conv2d, Linear, WSConv2d, same_padding, standardize_weight
from ipu_proxynorm.norm.grouping import regroup_channels
from ipu_proxynorm.norm.modules import ProxyNormAct
from ipu_proxynorm.norm.pending import Pending
from ipu_proxynorm.norm.places import replace_submodules
from ipu_proxynorm.norm.sharing import without_sharing
from ipu_proxynorm.norm.units import ActOnly, BatchNormAct, GroupNormAct


def fold_proxy_norm(model: nn.Module) -> nn.Module:
    """Return a copy of a network for inference, with nothing left of the proxies.

    Every layer of Group Norm with activation, proxy-normalized or not, becomes a
    ``torch.nn.GroupNorm``, the activation's torch module and at most a clamp or a scale and shift
    per channel; Batch Norm with activation becomes torch's, and so do convolutions and linear
    layers of this package, unless a unit leaves its scale to who reads it (`leave_scale`). One
    layer in several places stays one. That is what ``torch.jit.script``, ``torch.jit.trace`` and
    ``torch.onnx.export`` all take.
    """
    with torch.no_grad():
        model = copy.deepcopy(model).eval()
        without_sharing(model)
        rules = {m.scale_rule for m in model.modules() if isinstance(m, ProxyNormAct)}
        fold = _fold_unit if "left" in rules else _fold
        replace_submodules(model, fold)
        itself = fold(model)
        return model if itself is None else itself


def _fold(module: nn.Module) -> Optional[nn.Module]:
    """Return what takes the place of a unit or layer; None for what is none of ours."""
    if isinstance(module, (Conv2d, WSConv2d)) and type(module) in (Conv2d, WSConv2d):
        return _plain_convolution(module)
    if type(module) is Linear:
        module.__class__ = nn.Linear  # type: ignore[assignment]
        return module
    return _fold_unit(module)


def _plain_convolution(conv: Union[Conv2d, WSConv2d]) -> nn.Module:
    """Return torch's convolution that computes the same; the given one is gone."""
    if isinstance(conv, WSConv2d):
        conv.weight = nn.Parameter(standardize_weight(conv.weight), requires_grad=False)
    same = conv.same
    conv.__class__ = nn.Conv2d  # type: ignore[assignment]
    return nn.Sequential(SamePadding(conv), conv) if same else conv


def _fold_unit(module: nn.Module) -> Optional[nn.Module]:
    if isinstance(module, GroupNormAct):
        return _folded(module)
    if isinstance(module, ActOnly):
        return _module(module.activation)
    if isinstance(module, BatchNormAct):
        return nn.Sequential(BatchNorm(module), _module(module.activation))
    return None


def _folded(layer: GroupNormAct) -> nn.Sequential:
    activation, dtype = layer.activation, layer.weight.dtype
    weight = layer.weight.detach()
    bias = torch.zeros_like(weight) if layer.bias is None else layer.bias.detach()
    steps: List[nn.Module] = []
    if isinstance(layer, ProxyNormAct):
        prepared = layer.prepare()
        clamp = activation.clamp
        if layer.scale_rule != "applied":
            steps += [_module(activation), Shift((-prepared.mean).to(dtype))]
            if layer.scale_rule == "left":
                steps.append(LeaveScale(prepared.inv_std.to(dtype)))
        elif clamp is not None:
            weight, bias = prepared.weight, prepared.bias
            if clamp.lower > -math.inf:
                steps.append(AtLeast(prepared.lower.to(dtype)))
            if clamp.upper < math.inf:
                steps.append(AtMost(prepared.upper.to(dtype)))
        else:
            steps.append(_module(activation))
            if activation.homogeneous:
                weight, bias = prepared.weight, prepared.bias
            else:
                steps.append(Scale(prepared.inv_std.to(dtype)))
            steps.append(Shift((-prepared.mean * prepared.inv_std).to(dtype)))
    else:
        steps.append(_module(activation))
    norm = _group_norm(layer, weight, bias)
    return nn.Sequential(norm, *(s for s in steps if not isinstance(s, nn.Identity)))


class SamePadding(nn.Module):
    """The zeros that TensorFlow's ``SAME`` puts around what a strided convolution reads."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.kernel, self.stride = conv.kernel_size, conv.stride

    def forward(self, x: Tensor) -> Tensor:
        """Pad x (N, C, H, W)."""
        top, bottom = same_padding(x.shape[2], self.kernel[0], self.stride[0])
        left, right = same_padding(x.shape[3], self.kernel[1], self.stride[1])
        return F.pad(x, (left, right, top, bottom))


class _Channelwise(nn.Module):
    """An operation of each channel of x (N, C, *) with a value of its own."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def values(self, x: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (x.dim() - 2)
        # TorchScript does not read an annotation that would tell the buffer's type.
        return self.value.view(shape)  # type: ignore[operator]


class AtLeast(_Channelwise):
    """Clamp each channel from below."""

    def forward(self, x: Tensor) -> Tensor:
        """Clamp x (N, C, *)."""
        return torch.maximum(x, self.values(x))


class AtMost(_Channelwise):
    """Clamp each channel from above."""

    def forward(self, x: Tensor) -> Tensor:
        """Clamp x (N, C, *)."""
        return torch.minimum(x, self.values(x))


class Scale(_Channelwise):
    """Scale each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Scale x (N, C, *)."""
        return x * self.values(x)


class LeaveScale(_Channelwise):
    """Leave the scale of each channel to who reads it."""

    def forward(self, x: Tensor) -> Pending:
        """Return x (N, C, *) with its scale."""
        return Pending(x, self.value)  # type: ignore[arg-type]


class Shift(_Channelwise):
    """Shift each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Shift x (N, C, *)."""
        return x + self.values(x)


def _group_norm(layer: GroupNormAct, weight: Tensor, bias: Tensor) -> nn.Module:
    strided = layer.grouping_matters and layer.channel_grouping == "strided"
    if strided:
        weight, bias = (
            regroup_channels(p, layer.num_groups, "strided", "contiguous") for p in (weight, bias)
        )
    norm = nn.GroupNorm(layer.num_groups, layer.num_features, layer.eps)
    norm.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    norm.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)
    size = layer.num_features // layer.num_groups
    if not strided:
        return norm
    return nn.Sequential(Interleave(layer.num_groups), norm, Interleave(size))


class BatchNorm(_BatchNorm):
    """torch's Batch Norm of inputs of any number of dimensions."""

    def __init__(self, like: _BatchNorm) -> None:
        super().__init__(
            like.num_features,
            like.eps,
            like.momentum,
            like.affine,
            like.track_running_stats,
        )
        self._parameters.update(like._parameters)
        self._buffers.update(like._buffers)
        self.train(like.training)

    def _check_input_dim(self, input: Tensor) -> None:
        pass


class Interleave(nn.Module):
    """Bring channels i, i + step, i + 2·step, … of x (N, C, *) together, for i from 0 on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        """Permute the channels of x."""
        n, c = x.shape[0], x.shape[1]
        return x.reshape(n, c // self.step, self.step, -1).transpose(1, 2).reshape(x.shape)


class Elementwise(nn.Module):
    """An activation that is no torch module."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to x."""
        return self.activation(x)


_MODULES: Dict[str, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
    "mish": nn.Mish,
}


def _module(activation: Activation) -> nn.Module:
    if activation.name in _MODULES:
        return _MODULES[activation.name]()
    if activation.name.startswith("leaky_relu") and activation.pieces is not None:
        return nn.LeakyReLU(activation.pieces.slopes[0])
    if activation.clamp is not None:
        return nn.Hardtanh(activation.clamp.lower, activation.clamp.upper)
    if isinstance(activation.function, nn.Module):
        return activation.function
    return Elementwise(activation)
