"""How blocks make pipeline stages, and how many micro-batches fill a pipeline: PopTorch's count."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Tuple


class StageCount:
    """Counts stages while blocks begin: one, and one more for every switch of IPU.

    A block on the IPU that is in use belongs to the stage there, whatever its name; gone back to,
    an IPU holds a further stage. The program starts on IPU 0, and a block counts whether or not
    anything is in it.

    Source: PopTorch ``popart_compiler/source/Compiler.cpp:1286-1296`` and ``CompilerImpl.cpp:478``.

    Attributes:
        ipus: the IPU of each stage.

    """

    def __init__(self) -> None:
        self.ipus: List[int] = [0]

    def begin(self, ipu: int) -> int:
        """Note that a block begins on an IPU, and return the stage that it belongs to."""
        if ipu != self.ipus[-1]:
            self.ipus.append(ipu)
        return len(self.ipus) - 1


def micro_batches_needed(stages: int, training: bool) -> int:
    """Return how many micro-batches fill a pipeline.

    The backward pass has a stage for each but the last, which does both (``CompilerImpl.cpp:489``).
    """
    return 2 * stages - 1 if training else stages


def merged(stage_ipus: Mapping[int, int]) -> Tuple[int, ...]:
    """Return the numbers of stages, in order, once neighbours on one IPU are one.

    The first is 0; a number that no stage has stays a gap.

    Source: PopART ``transforms/pipeline.cpp:537`` (``mergeConsecutivePipelineStages``).

    Args:
        stage_ipus: the IPU of each stage that has operators, by the stage's number.

    """
    found: Dict[int, None] = {}
    shift = 0
    before: Optional[int] = None
    for stage in sorted(stage_ipus):
        if stage != 0 and (before is None or stage_ipus[stage] == before):
            shift += 1
        found[stage - shift] = None
        before = stage_ipus[stage]
    return tuple(found)
