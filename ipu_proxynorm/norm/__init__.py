"""Batch-independent normalization: Proxy Norm, and the norms and convolutions around it."""

from ipu_proxynorm.norm.activations import resolve_activation
from ipu_proxynorm.norm.conv import Conv2d, Linear, WSConv2d, create_conv, standardize_weight
from ipu_proxynorm.norm.convert.conversion import convert_norms
from ipu_proxynorm.norm.convert.report import ConversionReport, NormLine
from ipu_proxynorm.norm.create import NORM_UNITS, create_norm_act
from ipu_proxynorm.norm.execution import may_use_custom_backward, plain_operators
from ipu_proxynorm.norm.folding import fold_proxy_norm
from ipu_proxynorm.norm.functional import group_norm, group_norm_act, proxy_norm
from ipu_proxynorm.norm.grouping import regroup_channels
from ipu_proxynorm.norm.modules import ProxyNormAct, hand_on_to, leave_scale
from ipu_proxynorm.norm.moments.gaussian import proxy_moments
from ipu_proxynorm.norm.parameter_groups import describe_parameter_groups, parameter_groups
from ipu_proxynorm.norm.pending import Pending, finished, spatial_mean
from ipu_proxynorm.norm.sharing import SharedMoments, share_moments
from ipu_proxynorm.norm.spec import KINDS, NormKind, NormSpec, parse_norm_spec
from ipu_proxynorm.norm.standing_in import StandIn
from ipu_proxynorm.norm.timm_layer import timm_norm_layer
from ipu_proxynorm.norm.units import ActOnly, BatchNormAct, GroupNormAct

__all__ = [
    "KINDS",
    "NORM_UNITS",
    "ActOnly",
    "BatchNormAct",
    "Conv2d",
    "ConversionReport",
    "GroupNormAct",
    "Linear",
    "NormKind",
    "NormLine",
    "NormSpec",
    "Pending",
    "ProxyNormAct",
    "SharedMoments",
    "StandIn",
    "WSConv2d",
    "convert_norms",
    "create_conv",
    "create_norm_act",
    "describe_parameter_groups",
    "finished",
    "fold_proxy_norm",
    "group_norm",
    "group_norm_act",
    "hand_on_to",
    "leave_scale",
    "may_use_custom_backward",
    "parameter_groups",
    "parse_norm_spec",
    "plain_operators",
    "proxy_moments",
    "proxy_norm",
    "regroup_channels",
    "resolve_activation",
    "share_moments",
    "spatial_mean",
    "standardize_weight",
    "timm_norm_layer",
]
