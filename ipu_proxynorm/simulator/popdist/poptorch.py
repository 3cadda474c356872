"""``popdist.poptorch.Options``: PopTorch's options, with what the launcher decides filled in."""

from __future__ import annotations

from typing import Any, NoReturn, Optional

from .. import options as _options
from .._options_impl import OptionsDict
from . import (
    checkNumIpusPerReplica,
    getInstanceIndex,
    getNumInstances,
    getNumIpusPerReplica,
    getNumLocalReplicas,
)

__all__ = ["Options"]


def _refuse(name: str) -> NoReturn:
    raise RuntimeError(
        f"Cannot call `{name}` with popdist.poptorch.Options: the launcher decides this."
    )


class _DistributedOptions(_options._DistributedOptions):
    """``Options.Distributed`` of a launched process."""

    def __init__(self) -> None:
        self._gcd_mappings = {}
        # Not the parent's: it reads another launcher's variables.
        OptionsDict.__init__(
            self,
            num_distributed_processes=getNumInstances(),
            distributed_process_id=getInstanceIndex(),
            ipuof_configs={},
        )

    def disable(self) -> NoReturn:
        """Refuse: the launcher decides this."""
        _refuse("Distributed.disable")

    def setEnvVarNames(self, *args: Any) -> NoReturn:
        """Refuse: the launcher decides this."""
        _refuse("Distributed.setEnvVarNames")

    def configureProcessId(self, *args: Any) -> NoReturn:
        """Refuse: the launcher decides this."""
        _refuse("Distributed.configureProcessId")


class Options(_options.Options):
    """Options of one instance of a distributed program.

    Args:
        ipus_per_replica: IPUs that the model uses; default: what the environment says.

    Raises:
        RuntimeError: the environment says another number of IPUs.

    """

    def __init__(self, ipus_per_replica: Optional[int] = None) -> None:
        if ipus_per_replica is not None and not checkNumIpusPerReplica(ipus_per_replica):
            raise RuntimeError(
                f"The model uses {ipus_per_replica} IPUs per replica but "
                f"POPDIST_NUM_IPUS_PER_REPLICA is {getNumIpusPerReplica()}: give both the same."
            )
        super().__init__()
        self._distributed = _DistributedOptions()
        self.set(replication_factor=getNumLocalReplicas())

    def useIpuId(self, ipu_id: int) -> NoReturn:
        """Refuse: the launcher decides this."""
        _refuse("useIpuId")

    def replicationFactor(self, replication_factor: int) -> NoReturn:
        """Refuse: the launcher decides this."""
        _refuse("replicationFactor")
