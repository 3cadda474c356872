"""How a global batch is divided: micro-batch x replicas x gradient accumulation, and stages."""

from __future__ import annotations

import dataclasses
from typing import Dict, List

from ipu_proxynorm.errors import UserError, unknown_name
from ipu_proxynorm.stages import micro_batches_needed

#: IPUs of the systems that Graphcore sells under these names.
SYSTEMS: Dict[str, int] = {
    "m2000": 4,
    "bow2000": 4,
    **{f"pod{ipus}": ipus for ipus in (4, 8, 16, 32, 64, 128, 256)},
    **{f"bow-pod{ipus}": ipus for ipus in (16, 32, 64, 128, 256)},
}


def system_ipus(name: str) -> int:
    """Return the IPUs of a system.

    Raises:
        UserError: there is no such system.
    """
    if name.lower() not in SYSTEMS:
        raise unknown_name("--system", name, list(SYSTEMS), "; or give a number: --ipus N")
    return SYSTEMS[name.lower()]


@dataclasses.dataclass(frozen=True)
class BatchLayout:
    """The numbers of a run; their product, stages aside, is the global batch."""

    stages: int
    replicas: int
    micro_batch: int
    gradient_accumulation: int

    @property
    def ipus(self) -> int:
        """IPUs of all replicas."""
        return self.stages * self.replicas

    @property
    def global_batch(self) -> int:
        """Images behind one weight update."""
        return self.micro_batch * self.replicas * self.gradient_accumulation

    @property
    def micro_batches(self) -> int:
        """Micro-batches' worth of time that an update takes, the pipeline's filling included.

        Of the A + 2 (S - 1) steps of an update the first S - 1 have forward passes only and the
        last S - 1 backward passes only: together A + S - 1 whole ones.
        """
        return self.gradient_accumulation + self.stages - 1

    @property
    def bubble(self) -> float:
        """Share of the time in which an IPU waits for the pipeline to fill or to drain."""
        return (self.stages - 1) / self.micro_batches


def powers_of_two(most: int) -> List[int]:
    """Return 1, 2, 4 ... up to ``most``."""
    return [1 << exponent for exponent in range(most.bit_length()) if 1 << exponent <= most]


def batch_layouts(
    global_batch: int, ipus: int, most_stages: int, most_micro_batch: int = 256
) -> List[BatchLayout]:
    """Return every way to deal out exactly ``global_batch`` images over up to ``ipus`` IPUs.

    Stages and replicas are powers of two: partitions of a pod are, and PopTorch refuses others. A
    pipeline of S stages gets at least 2S - 1 micro-batches, as PopTorch demands.

    Raises:
        UserError: ``ipus`` or ``global_batch`` is below 1, or no micro-batch remains.
    """
    if ipus < 1:
        raise UserError(f"--ipus {ipus}: expected at least 1 IPU, e.g. --ipus 16")
    if global_batch < 1:
        raise UserError(f"--global-batch {global_batch}: expected at least 1 image")
    layouts = []
    for stages in powers_of_two(min(ipus, most_stages)):
        for replicas in powers_of_two(ipus // stages):
            share, rest = divmod(global_batch, replicas)
            for micro_batch in range(1, min(share, most_micro_batch) + 1):
                accumulation, left = divmod(share, micro_batch)
                enough = stages == 1 or accumulation >= micro_batches_needed(stages, True)
                if not rest and not left and enough:
                    layouts.append(BatchLayout(stages, replicas, micro_batch, accumulation))
    return layouts
