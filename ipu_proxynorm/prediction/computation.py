"""How the simulator computes a run's programs: micro-batches together, or one by one and why."""

from __future__ import annotations

from typing import Dict

from ipu_proxynorm.backend import at_once
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.prediction.preflight import programs


def computed(config: RunConfig) -> Dict[str, str]:
    """Return a sentence on each of a run's programs, by the program's name.

    Each is compiled; no data are needed.

    Raises:
        UserError: what the configuration describes cannot be built.
        poptorch.Error: PopTorch refuses it.
    """
    found = {}
    for name, wrap, inputs in programs(config):
        executor = wrap()
        executor.compile(*inputs)
        found[name] = str(at_once(executor))
        executor.destroy()
    return found
