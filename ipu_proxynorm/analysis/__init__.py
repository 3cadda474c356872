"""What normalization does to a network's activations, and how norms compare in training."""

from ipu_proxynorm.analysis.normalized import NORMS, normalized
from ipu_proxynorm.analysis.power import (
    POWERS,
    Power,
    PowerAccumulator,
    instance_statistics,
    power_decomposition,
)
from ipu_proxynorm.analysis.proxies import PROXIES, replace_proxies
from ipu_proxynorm.analysis.proxy_distance import DISTANCES, ProxyDistance, record_proxies
from ipu_proxynorm.analysis.recorder import PowerRecorder, norm_layers, record_power

__all__ = [
    "DISTANCES",
    "NORMS",
    "POWERS",
    "PROXIES",
    "Power",
    "PowerAccumulator",
    "PowerRecorder",
    "ProxyDistance",
    "instance_statistics",
    "norm_layers",
    "normalized",
    "power_decomposition",
    "record_power",
    "record_proxies",
    "replace_proxies",
]
