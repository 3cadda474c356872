"""A double of PopVision's analysis library: what ``memory --measured`` reads, of two IPUs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def openReport(path: str) -> Any:
    """Return a report of two IPUs of 10 tiles, with 1,000 and 2,000 bytes on each tile."""
    with open(path, "rb"):
        pass
    ipus = []
    for used in (1_000, 2_000):
        memory = SimpleNamespace(total=SimpleNamespace(excludingGaps=used, includingGaps=used + 8))
        ipus.append(SimpleNamespace(tiles=[SimpleNamespace(memory=memory)] * 10))
    return SimpleNamespace(compilation=SimpleNamespace(ipus=ipus))
