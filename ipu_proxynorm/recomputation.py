"""What is computed again in the backward pass: PopART's kinds of recomputation, by name."""

from __future__ import annotations

import dataclasses
from typing import Dict

NONE, STANDARD, NORM_ONLY, PIPELINE, ALL = "none", "standard", "norm-only", "pipeline", "all"


@dataclasses.dataclass(frozen=True)
class Recomputation:
    """One of PopART's ``RecomputationType``.

    Attributes:
        value: its number there.
        note: what is recomputed, in a few words.
        checkpoints: whether the layers of ``ipu.recomputation_checkpoints`` are kept. ``Standard``
            and ``NormOnly`` choose what they keep for themselves, whatever the model marks
            (``recompute.cpp:51-62, 143-149``).
    """

    value: int
    note: str
    checkpoints: bool = False


#: By name, as ``ipu.recomputation`` has them.
RECOMPUTATIONS: Dict[str, Recomputation] = {
    NONE: Recomputation(0, "nothing"),
    STANDARD: Recomputation(1, "what PopART chooses by size, on one IPU"),
    NORM_ONLY: Recomputation(2, "outputs of norms, on one IPU"),
    PIPELINE: Recomputation(3, "a pipeline's stages but for the last", checkpoints=True),
    ALL: Recomputation(4, "all but the checkpoints, on one IPU", checkpoints=True),
}
