"""What a normalization makes of its input, before scale and shift: the paper's y.

The norm units of this project compute norm, affine and activation as one; other people's networks
use torch.nn's. For either, y is computed here from the layer's input with the layer's statistics.
"""

from __future__ import annotations

from typing import Tuple, Type

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from ipu_proxynorm.norm import ActOnly, GroupNormAct, group_norm

#: The layers that count as normalizations. `ActOnly` is the norm spec ``none``: y is its input.
NORMS: Tuple[Type[nn.Module], ...] = (
    _BatchNorm,
    GroupNormAct,
    ActOnly,
    nn.GroupNorm,
    nn.LayerNorm,
    _InstanceNorm,
)


def normalized(layer: nn.Module, x: Tensor) -> Tensor:
    """Return y ``(N, C, *)``: input ``x`` of ``layer``, normalized, without scale and shift.

    Batch Norm uses the batch's statistics in training and the running ones in evaluation, as the
    layer itself does; running statistics are not touched. Computed in at least float32.

    Args:
        layer: an instance of one of `NORMS`.
        x: the layer's input: ``(N, C, *)``, or for ``nn.LayerNorm`` as that has it, channels last.

    Raises:
        TypeError: the layer is none of them.

    """
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    if isinstance(layer, _BatchNorm):
        return _batch_norm(layer, x)
    if isinstance(layer, _InstanceNorm):
        return group_norm(x, x.shape[1], eps=layer.eps)
    if isinstance(layer, GroupNormAct):
        return group_norm(x, layer.num_groups, eps=layer.eps, grouping=layer.channel_grouping)
    if isinstance(layer, nn.GroupNorm):
        return group_norm(x, layer.num_groups, eps=layer.eps)
    if isinstance(layer, nn.LayerNorm):
        return _layer_norm(layer, x)
    if isinstance(layer, ActOnly):
        return x
    raise TypeError(f"{type(layer).__name__} is not a normalization that the analysis knows")


def _batch_norm(layer: _BatchNorm, x: Tensor) -> Tensor:
    mean, var = layer.running_mean, layer.running_var
    if layer.training or mean is None or var is None:
        return F.batch_norm(x, None, None, training=True, eps=layer.eps)
    return F.batch_norm(x, mean.to(x.dtype), var.to(x.dtype), training=False, eps=layer.eps)


def _layer_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalize as ``nn.LayerNorm``; return channels first.

    Layers named ``...2d``, as torchvision and timm call theirs, take ``(N, C, H, W)`` and
    normalize over C at each place.
    """
    shape = tuple(layer.normalized_shape)
    if type(layer).__name__.endswith("2d") and x.dim() == 4 and len(shape) == 1:
        return F.layer_norm(x.movedim(1, -1), shape, eps=layer.eps).movedim(-1, 1)
    y = F.layer_norm(x, shape, eps=layer.eps)
    return y.movedim(-1, 1) if len(shape) == 1 else y
