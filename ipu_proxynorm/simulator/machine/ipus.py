"""The IPUs of the simulated machine: which are asked for, and which of them are taken."""

from __future__ import annotations

import os
from typing import Collection, Set, Tuple

from .. import enums, poptorch_core
from .._logging import logger
from ..options import Options

_MOST_IPUS = 64
_taken: Set[int] = set()


def _error(message: str) -> poptorch_core.Error:
    return poptorch_core.createError(message, layer="poptorch_cpp_error")


def ipus_per_replica(placements: Collection[Tuple[int, int, int]]) -> int:
    """Return how many IPUs one replica occupies, those between used ones included."""
    return max((ipu for _, _, ipu in placements), default=0) + 1


def _takes_ipus(options: Options) -> bool:
    """Tell whether a model is meant for IPUs, not for the IPU Model or for compilation alone.

    ``POPTORCH_SIM_HARDWARE=0`` says that the machine has none: then it is for the IPU Model.
    """
    use_model = os.environ.get("POPTORCH_IPU_MODEL", "0") != "0"
    use_model = use_model or os.environ.get("POPTORCH_SIM_HARDWARE") == "0"
    if options.exists("use_model"):
        use_model = options.use_model
    return not use_model and options.connection_type != enums.ConnectionType.Never.value


def ipus_needed(placements: Collection[Tuple[int, int, int]], options: Options) -> int:
    """Return how many IPUs a model occupies, all replicas together.

    Args:
        placements: stage, phase and IPU of every block.
        options: the model's options.

    Raises:
        poptorch.Error: more than one process can have, or no power of 2 without
            ``autoRoundNumIPUs`` (popart_compiler/source/CompilerImpl.cpp:688-712). The IPU Model
            and offline compilation take any number.

    """
    needed = ipus_per_replica(placements) * options.replication_factor
    rounded = 1
    while rounded < needed:
        rounded *= 2
    reason = ", because PopTorch must reserve a power of 2 or maximum of 64 IPUs per process"
    if rounded != needed and _takes_ipus(options):
        if not options.auto_round_num_ipus:
            raise _error(
                f"The model specifies the use of {needed} IPUs, however PopTorch must reserve a "
                f"minimum of {rounded} in order to allow the model to run{reason}. Please "
                "reconfigure your model to use a different number of IPUs or set "
                "poptorch.Options().autoRoundNumIPUs(True)."
            )
        logger.warning(
            "Reserving %d IPUs when the model specifices the use of only %d%s. "
            "%d will be reserved but not used.",
            rounded,
            needed,
            reason,
            rounded - needed,
        )
        needed = rounded
    if needed > _MOST_IPUS:
        raise _error(
            f"Too many IPUs requested ({needed}). Experiments that need more than 64 IPUs require "
            "distributed execution."
        )
    return needed


def attach(options: Options) -> None:
    """Take the device that the options ask for.

    Raises:
        poptorch.Error: another model has it.

    """
    if not options.exists("ipu_id"):
        logger.debug("Attached to device 0")
        return
    device = options.ipu_id
    if device in _taken:
        hint = "detach it, or destroy that model, first"
        if os.environ.get("POPTORCH_WAIT_FOR_IPU", "0") != "0":
            hint = f"waiting for it would take for ever within one process: {hint}"
        raise _error(f"Failed to acquire device Id {device}: another model has it ({hint})")
    _taken.add(device)
    logger.debug("Attached to device %d", device)


def detach(options: Options) -> None:
    """Give the device back."""
    if options.exists("ipu_id"):
        _taken.discard(options.ipu_id)
    logger.debug("Detached from device %d", options.ipu_id if options.exists("ipu_id") else 0)
