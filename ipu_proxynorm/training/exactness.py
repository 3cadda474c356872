"""What the last bits of a run depend on beside its configuration, and what of that has changed."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping

import torch

from ipu_proxynorm.backend import SIMULATED, at_once

TOGETHER, THREADS = "micro-batches computed at once", "threads"
# What sets it back.
_VARIABLES = {TOGETHER: "POPTORCH_SIM_TOGETHER", THREADS: "OMP_NUM_THREADS"}


def ways(executor: Any) -> Dict[str, Any]:
    """Return, by name, what decides how a compiled program's sums are rounded.

    Simulated, these are the order of sums (micro-batches together or one after the other, threads)
    and torch's own kernels. An IPU's program and its compiler's version are the SDK's business.
    """
    if not SIMULATED:
        return {"backend": "Poplar SDK"}
    return {
        "backend": "simulator",
        TOGETHER: at_once(executor).micro_batches,
        THREADS: torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def departures(before: Mapping[str, Any], now: Mapping[str, Any]) -> List[str]:
    """Return what has changed, with both values and what sets it back; only what both know."""
    found = []
    for name in before.keys() & now.keys():
        if before[name] != now[name]:
            back = f" ({_VARIABLES[name]} sets it)" if name in _VARIABLES else ""
            found.append(f"{name}: {before[name]}, now {now[name]}{back}")
    return sorted(found)


def notice(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Return the sentence about a run that does not go on bit for bit; "": it does."""
    changed = departures(before, now)
    if not changed:
        return ""
    return (
        "--resume: the run goes on, equal to rounding but not bit for bit, as it is computed in "
        f"another way than before: {'; '.join(changed)}"
    )
