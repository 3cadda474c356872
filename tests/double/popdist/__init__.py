"""A double of PopDist: the names that Graphcore's public programs and tests use, and no more."""

from __future__ import annotations

from ipu_proxynorm.simulator.popdist import (
    execute_on_instances,
    getInstanceIndex,
    getNumInstances,
    getNumIpusPerReplica,
    getNumLocalReplicas,
    getNumTotalReplicas,
    init,
    isPopdistEnvSet,
)

__all__ = [
    "execute_on_instances",
    "getInstanceIndex",
    "getNumInstances",
    "getNumIpusPerReplica",
    "getNumLocalReplicas",
    "getNumTotalReplicas",
    "init",
    "isPopdistEnvSet",
]
