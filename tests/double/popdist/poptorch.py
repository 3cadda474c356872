"""Options of a process that ``poprun`` started."""

from __future__ import annotations

from ipu_proxynorm.simulator.popdist.poptorch import Options

__all__ = ["Options"]
