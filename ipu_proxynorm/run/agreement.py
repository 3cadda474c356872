"""What the processes of a run must have in common, compared before they train."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Any, Callable, Dict, Mapping

import torch

import ipu_proxynorm
from ipu_proxynorm.config import RunConfig, documentation
from ipu_proxynorm.config.check import get
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.run.processes import Processes

#: Keys that may differ: where a machine keeps its files, and how it reads them.
OWN = ("data.path", "data.workers", "runs")
#: Environment variables that decide how the simulator computes, to the last bit.
VARIABLES = ("POPTORCH_SIM_DEVICE", "POPTORCH_SIM_OPTIMIZE", "POPTORCH_SIM_TOGETHER")
#: Values longer than this are shown by their beginning.
_SHOWN = 60


def agree(processes: Processes, facts: Callable[[], Mapping[str, Any]]) -> None:
    """Compare facts over all processes; one process has nobody to differ from.

    Args:
        processes: the processes of the run.
        facts: gives each fact by its name; called in every process.

    Raises:
        UserError: two processes differ; names the fact and both values.
    """
    if processes.alone:
        return
    with processes.together():
        own = {name: str(value) for name, value in facts().items()}
    first, *others = processes.gather(own)
    for index, theirs in enumerate(others, 1):
        for name in sorted(first.keys() | theirs.keys()):
            if theirs.get(name) != first.get(name):
                raise processes.agreed(_differ(processes, index, name, theirs, first))


def _differ(
    processes: Processes, index: int, name: str, theirs: Mapping[str, str], first: Mapping[str, str]
) -> UserError:
    values = [values.get(name, "not set")[:_SHOWN] for values in (theirs, first)]
    return UserError(
        f"process {index} of {processes.instance.count}: {name} is {values[0]} there and "
        f"{values[1]} in process 0; start all processes of a run with the same program, command "
        f"and images"
    )


def facts_of(config: RunConfig) -> Dict[str, Any]:
    """Return what decides a run's figures before its images are read, by name."""
    keys = [key.name for key in documentation() if key.name not in OWN]
    facts = {name: get(config, name) for name in keys}
    facts.update({name: os.environ.get(name, "not set") for name in VARIABLES})
    facts["the version of torch"] = torch.__version__
    facts["the version of ipu-proxynorm"] = f"{ipu_proxynorm.__version__} ({source_digest()})"
    return facts


@functools.lru_cache(maxsize=None)
def source_digest() -> str:
    """Return the beginning of the SHA-256 of this package's source files."""
    digest = hashlib.sha256()
    root = Path(ipu_proxynorm.__file__).parent
    for folder, _, names in sorted(os.walk(root, followlinks=True)):
        for name in sorted(name for name in names if name.endswith(".py")):
            path = Path(folder, name)
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
