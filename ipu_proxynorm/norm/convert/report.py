"""What a conversion did: each norm, the parameters that are new or gone, the forwards rewritten."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Dict, List, Sequence

OUTCOMES = {
    "fused": "fused with the activation that follows",
    "plain": "without an activation",
    "kept": "kept, as asked",
    "refused": "refused",
}


@dataclasses.dataclass(frozen=True)
class NormLine:
    """What became of one norm.

    Attributes:
        name: in the network, as in ``named_modules``.
        type: its class before.
        channels: its C; 0 where that is not known.
        outcome: ``fused``, ``plain`` (converted, no activation within), ``kept`` or ``refused``.
        activation: the fused one's name, or empty.
        becomes: class and norm spec of the unit in its place, or empty.
        reason: why it is plain or refused, or empty.

    """

    name: str
    type: str
    channels: int
    outcome: str
    activation: str = ""
    becomes: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What `convert_norms` did to a network.

    Attributes:
        spec: the norm spec asked for.
        norms: each norm, in the order of ``named_modules``.
        kept_parameters: names of the parameters that are the same objects as before.
        new_parameters: names of those that no optimizer built before knows.
        removed_parameters: names of those that are no longer the network's.
        removed_buffers: names of buffers that are gone, Batch Norm's running statistics above all.
        identities: activation modules that are ``nn.Identity`` now: their norm applies them.
        rewritten: modules whose forward leaves out activation calls; empty name: the network.

    """

    spec: str
    norms: Sequence[NormLine]
    kept_parameters: Sequence[str] = ()
    new_parameters: Sequence[str] = ()
    removed_parameters: Sequence[str] = ()
    removed_buffers: Sequence[str] = ()
    identities: Sequence[str] = ()
    rewritten: Sequence[str] = ()

    @property
    def counts(self) -> Dict[str, int]:
        """Return how many norms had each outcome."""
        found = Counter(line.outcome for line in self.norms)
        return {outcome: found[outcome] for outcome in OUTCOMES}

    @property
    def reasons(self) -> Dict[str, int]:
        """Return how many norms were refused for each reason."""
        return dict(Counter(line.reason for line in self.norms if line.outcome == "refused"))

    def table(self) -> str:
        """Return one line a norm: name, class, channels, what became of it and why."""
        rows = [
            (
                line.name,
                f"{line.type}({line.channels})",
                f"-> {line.becomes}" if line.becomes else line.outcome,
                line.activation or line.reason,
            )
            for line in self.norms
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths)), row[3]]).rstrip()
            for row in rows
        )

    def __str__(self) -> str:
        """Return the counts, what was refused, and what an optimizer must know."""
        counts = ", ".join(f"{n} {OUTCOMES[outcome]}" for outcome, n in self.counts.items() if n)
        lines = [f"{self.spec}: {len(self.norms)} norms: {counts or 'nothing to convert'}"]
        lines += [
            f"  refused: {line.name} ({line.type}): {line.reason}"
            for line in self.norms
            if line.outcome == "refused"
        ]
        lines.append(
            f"parameters: {len(self.kept_parameters)} are the same objects as before, "
            f"{len(self.new_parameters)} new, {len(self.removed_parameters)} removed"
            f"{_shown(self.new_parameters)}{_shown(self.removed_parameters)}"
        )
        if self.new_parameters or self.removed_parameters:
            lines.append("build the optimizer now: one built before updates none of the new ones")
        if self.removed_buffers:
            lines.append(
                f"buffers removed: {len(self.removed_buffers)}{_shown(self.removed_buffers)}"
            )
        if self.rewritten:
            names = [name or "the network itself" for name in self.rewritten]
            lines.append(f"forwards rewritten: {len(names)}{_shown(names)}")
        return "\n".join(lines)


def _shown(names: Sequence[str], most: int = 2) -> str:
    if not names:
        return ""
    listed: List[str] = [*names[:most], *(["..."] if len(names) > most else [])]
    return f" ({', '.join(listed)})"
