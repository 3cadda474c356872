"""The layout with the highest predicted throughput that fits: solvers on plain numbers."""

from ipu_proxynorm.memory.planner.layouts import SYSTEMS, BatchLayout, system_ipus
from ipu_proxynorm.memory.planner.plan import SAME_SPEED, Plan, Planner, Plans

__all__ = ["SAME_SPEED", "SYSTEMS", "BatchLayout", "Plan", "Planner", "Plans", "system_ipus"]
