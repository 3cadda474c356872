"""PopDist on the CPU: which instance of a distributed program this is.

An instance is a process that ``torchrun`` launched. ``POPDIST_NUM_LOCAL_REPLICAS`` (default 1) and
``POPDIST_NUM_IPUS_PER_REPLICA`` (default 1) say what ``poprun`` would be told on its command line.

Source: PopDist and PopRun User Guide, Python API reference.
"""

from __future__ import annotations

from typing import Any, Callable, Optional, Set

import torch.distributed as dist

from ..machine import processes

__all__ = [
    "checkNumIpusPerReplica",
    "execute_on_instances",
    "finalizeBackend",
    "getDeviceId",
    "getInstanceIndex",
    "getLocalInstanceIndex",
    "getNumInstances",
    "getNumIpusPerReplica",
    "getNumLocalReplicas",
    "getNumTotalReplicas",
    "getReplicaIndexOffset",
    "init",
    "initializeBackend",
    "isBackendInitialized",
    "isPopdistEnvSet",
    "synchronize",
]

# The instances that take part in what `execute_on_instances` runs; None outside of it.
_group: Optional[Any] = None


def isPopdistEnvSet() -> bool:
    """Tell whether this process is one of several that were launched together."""
    return processes.isLaunched()


def getInstanceIndex() -> int:
    """Return the index of this instance, from 0."""
    return processes.environmentInt("RANK", 0) if isPopdistEnvSet() else 0


def getNumInstances() -> int:
    """Return the number of instances."""
    return processes.environmentInt("WORLD_SIZE", 1) if isPopdistEnvSet() else 1


def getLocalInstanceIndex() -> int:
    """Return the index of this instance among those of its host."""
    return processes.environmentInt("LOCAL_RANK", 0) if isPopdistEnvSet() else 0


def getNumLocalReplicas() -> int:
    """Return the number of replicas of this instance."""
    return processes.environmentInt("POPDIST_NUM_LOCAL_REPLICAS", 1)


def getNumTotalReplicas() -> int:
    """Return the number of replicas of all instances."""
    return getNumLocalReplicas() * getNumInstances()


def getReplicaIndexOffset() -> int:
    """Return the index of the first replica of this instance among all."""
    return getNumLocalReplicas() * getInstanceIndex()


def getNumIpusPerReplica() -> int:
    """Return the number of IPUs of each replica."""
    return processes.environmentInt("POPDIST_NUM_IPUS_PER_REPLICA", 1)


def checkNumIpusPerReplica(num_ipus: int) -> bool:
    """Tell whether a replica has that many IPUs, as far as the environment says."""
    return processes.environmentInt("POPDIST_NUM_IPUS_PER_REPLICA", num_ipus) == num_ipus


def getDeviceId(ipusPerReplica: int = 0) -> int:
    """Return the device that this instance uses: one for each instance of a host."""
    return getLocalInstanceIndex()


def init() -> None:
    """Connect the instances; without effect outside a distributed run."""
    if isPopdistEnvSet():
        processes.connect()


initializeBackend = init


def isBackendInitialized() -> bool:
    """Tell whether the instances are connected."""
    return processes.isInitialised()


def finalizeBackend() -> None:
    """Disconnect the instances."""
    if processes.isInitialised():
        dist.destroy_process_group()


def synchronize() -> None:
    """Wait until every instance, or every instance taking part, has come here."""
    if processes.isInitialised():
        dist.barrier(group=_group)


def execute_on_instances(
    instances: Set[int], func: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Run ``func`` on the given instances only and return its result, elsewhere None.

    All instances must call this, as it makes a group for what ``func`` synchronizes.
    """
    global _group
    if not isPopdistEnvSet():
        return func(*args, **kwargs) if 0 in instances else None
    init()
    outer, _group = _group, dist.new_group(sorted(instances))
    try:
        return func(*args, **kwargs) if getInstanceIndex() in instances else None
    finally:
        if getInstanceIndex() in instances:
            dist.destroy_process_group(_group)
        _group = outer
