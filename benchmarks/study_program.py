"""The published study's program, as TensorFlow on Poplar ran it, where it is not the recipe's.

The study ran graphcore/examples' ``applications/tensorflow/cnns/training`` (v2.1.0) on SDK 2.0, as
its repository says. Read in those sources and in graphcore/tensorflow, branch
``r1.15/sdk-release-2.0``, below ``tensorflow/compiler/plugin/poplar/driver``:

- The swish is TensorFlow's own: ``nn_ops.swish`` came with SDK 2.1, and the network falls back
  (``Models/efficientnet.py:312``). It is x·sigmoid(x), and its gradient six operators that begin
  with the sigmoid (``python/ops/nn_impl.py``); the sigmoid is popnn's (``kernels/popnn``).
- Proxy Norm reads moments that are computed once a weight update, computes itself again in the
  backward pass (``Models/proxy_norm.py:22``) and adds a zero to what it does so from.
- A stage is computed again as it was, before its backward pass, and not merged with it (mode
  ``Auto`` of a grouped schedule, ``tools/pipeline_util.cc:1014``).
- No two of these operators become one. ``passes/expression_outliner.cc:94`` makes one expression
  of neighbours that are plain HLO operators, not done in place, and read by one other each. But an
  operator with a broadcast operand is a fusion of its own by then
  (``passes/elementwise_broadcast_converter.cc:75``), and a sigmoid is a call. What is left,
  products of two whole tensors, is done in place where it can be (``InplaceFinder`` runs first),
  and has such a neighbour only in the swish's gradient, where one of the two is in place.

Operators on parameters alone (casts, slices, accumulation) are left out of every row, as in
predictions of our own programs.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Tuple

import torch
from torch import Tensor, nn

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.norm.functional import group_norm
from ipu_proxynorm.norm.modules import ProxyNormAct
from ipu_proxynorm.norm.pending import Output, Pending, per_channel
from ipu_proxynorm.prediction.footprint import Footprint, footprint

_TINY = 2.0**-24


def swish_gradient(gradient: Tensor, x: Tensor, sigmoid: Tensor) -> Tensor:
    """Return the gradient of x·sigmoid(x), all (N, C, *), in TensorFlow's operators."""
    return gradient * (sigmoid * (1.0 + x * (1.0 - sigmoid)))


class Swish(torch.autograd.Function):
    """``tf.nn.swish``: keeps x, and takes its sigmoid again for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return x·sigmoid(x)."""
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of x."""
        (x,) = ctx.saved_tensors
        return swish_gradient(gradient, x, torch.sigmoid(x))


class ProxySwish(torch.autograd.Function):
    """``proxynorm_activation`` with recomputation, of x (N, C, H, W) and per channel (1, C, 1, 1).

    (swish(x·gamma + beta) − mean)·scale, without the scale where it is delayed: what it is
    multiplied with is then for those who read it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, scale: Tensor, delayed: bool
    ) -> Tensor:
        """Return the output (N, C, H, W)."""
        ctx.save_for_backward(x, gamma, beta, mean, scale)
        ctx.delayed = delayed
        affine = x * gamma + beta
        centered = affine * torch.sigmoid(affine) - mean
        return centered if delayed else centered * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Any, ...]:
        """Return the gradients; what no gradient needs is not computed again (HLO's DCE)."""
        x, gamma, beta, mean, scale = ctx.saved_tensors
        # fake_data_dep: one zero for all five, computed once (CSE), from an element of the
        # gradient; not from it here, where a trace counts an element of a tensor as the whole.
        zero = gradient.new_zeros(()) * _TINY
        zero = zero - zero
        x, gamma, beta = x + zero, gamma + zero, beta + zero
        affine = x * gamma + beta
        sigmoid = torch.sigmoid(affine)
        of_scale = None
        if not ctx.delayed:
            centered = affine * sigmoid - (mean + zero)
            of_scale = _over_channel(centered * gradient)
            gradient = gradient * (scale + zero)
        of_mean = _over_channel(-gradient)
        of_affine = swish_gradient(gradient, affine, sigmoid)
        of_gamma, of_beta = _over_channel(x * of_affine), _over_channel(of_affine)
        return of_affine * gamma, of_gamma, of_beta, of_mean, of_scale, None


def _over_channel(x: Tensor) -> Tensor:
    return x.sum((0, 2, 3), keepdim=True)


class PublishedProxyNorm(ProxyNormAct):
    """Our unit in the study's form: its moments are parameters, as they are variables there."""

    def _forward(self, x: Tensor) -> Output:
        normalized = group_norm(
            x, self.num_groups, None, None, self.eps, grouping=self.channel_grouping
        )
        parameters = (self.weight, self.bias, self.proxy_bias, self.proxy_weight)
        channels = [per_channel(p, x).to(x.dtype) for p in parameters]
        out = ProxySwish.apply(normalized, *channels, self.scale_rule != "applied")
        return Pending(out, self.proxy_weight) if self.scale_rule == "left" else out


def in_study_form(model: nn.Module) -> None:
    """Make a network's activations, and what of it is Proxy Norm, the study's, in place."""
    for module in model.modules():
        if isinstance(module, ProxyNormAct):
            module.__class__ = PublishedProxyNorm
        elif getattr(getattr(module, "activation", None), "name", "") == "silu":
            module.activation = dataclasses.replace(module.activation, function=Swish.apply)


def study_footprint(config: RunConfig) -> Footprint:
    """Return the footprint of a recipe's run in the study's form."""
    if config.model.norm.endswith("+pn"):
        config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, proxy_scale="published")
        )
    return footprint(config, change=in_study_form)
