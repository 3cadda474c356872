"""Where the optimiser's state lies: on chip, sharded over replicas, or in Streaming Memory."""

from __future__ import annotations

from typing import Dict

ON_CHIP, SHARDED, OFF_CHIP = "on-chip", "sharded", "off-chip"

#: The places by name, with what to know of them.
PLACEMENTS: Dict[str, str] = {
    ON_CHIP: "",
    SHARDED: "over replicas",
    OFF_CHIP: "in Streaming Memory",
}
