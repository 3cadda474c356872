"""Which of a run's processes this one is, and its share of the replicas.

``torchrun`` (simulator) or ``poprun`` (IPUs) starts several processes, each a PopTorch instance
with its own replicas. ``ipu.replication_factor`` counts the replicas of all of them together, as
``poprun --num-replicas`` does: how many processes share them changes no weight update.
"""

from __future__ import annotations

import dataclasses
import os

from ipu_proxynorm.backend import popdist, poptorch
from ipu_proxynorm.config import IPUConfig
from ipu_proxynorm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Instance:
    """One of ``count`` processes, numbered from 0; ``launched`` by torchrun or poprun."""

    index: int = 0
    count: int = 1
    launched: bool = False

    def replicas(self, config: IPUConfig) -> int:
        """Return how many of a run's replicas are this process's.

        Raises:
            UserError: the processes cannot have equally many, or poprun was told another number.
        """
        total = config.replication_factor
        if total % self.count:
            raise UserError(
                f"ipu.replication_factor={total}: it counts the replicas of all processes "
                f"together, and {self.count} processes cannot have equally many; set it to a "
                f"multiple of {self.count}, or start another number of processes"
            )
        return total // self.count


#: A process that nobody launched together with others.
ALONE = Instance()


def launched() -> Instance:
    """Return which process this is, by what its launcher left in the environment.

    Raises:
        UserError: the number of the process is none of theirs.
    """
    if popdist is None or not popdist.isPopdistEnvSet():
        return ALONE
    instance = Instance(popdist.getInstanceIndex(), popdist.getNumInstances(), True)
    if not 0 <= instance.index < instance.count:
        raise UserError(
            f"RANK={instance.index}: expected 0 to {instance.count - 1}, as there are WORLD_SIZE="
            f"{instance.count} processes; torchrun sets both"
        )
    return instance


def instance_options(config: IPUConfig, instance: Instance) -> poptorch.Options:
    """Return options that say which process this is and how many replicas it has.

    Raises:
        UserError: the replicas cannot be shared out.
    """
    replicas = instance.replicas(config)
    if not instance.launched:
        options = poptorch.Options()
        options.Distributed.disable()  # whatever mpirun may have left in the environment
        options.replicationFactor(replicas)
        return options
    # poprun says how many replicas a process has; torchrun knows of none.
    os.environ.setdefault("POPDIST_NUM_LOCAL_REPLICAS", str(replicas))
    if popdist.getNumTotalReplicas() != config.replication_factor:
        raise UserError(
            f"ipu.replication_factor={config.replication_factor}: the launcher has "
            f"{popdist.getNumTotalReplicas()} replicas for all processes together; start it with "
            f"poprun --num-replicas {config.replication_factor}, or set ipu.replication_factor="
            f"{popdist.getNumTotalReplicas()}"
        )
    # A replica takes a power of 2 of IPUs, whatever it uses of them.
    return popdist.poptorch.Options(ipus_per_replica=1 << len(config.splits).bit_length())
