"""Norm specs: the short strings, such as ``gn4+pn``, that name a normalization."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Optional

KINDS = ("bn", "in", "ln", "gn", "none")
SUFFIXES = ("pn", "ws")
_EXAMPLES = tuple(
    kind + suffix
    for kind in ("bn", "in", "ln", "gn4", "gn8", "gn16", "gn32", "none")
    for suffix in ("", "+pn", "+ws", "+pn+ws")
    if not ("pn" in suffix and kind in ("bn", "in", "none"))
)
_WHY_NO_PROXY = {
    "bn": "Batch Norm does over the batch what Proxy Norm stands in for",
    "in": "Instance Norm erases what differs between instances, and Proxy Norm cannot restore it",
    "none": "the proxy variable stands for a normalized pre-activation, and none is normalized",
}


@dataclass(frozen=True)
class NormSpec:
    """What a norm spec says.

    Attributes:
        kind: ``bn``, ``in``, ``ln``, ``gn`` or ``none``.
        groups: number of channel groups of ``gn``, None for the others.
        proxy: whether the activation is proxy-normalized (``+pn``).
        weight_standardization: whether convolution weights are standardized (``+ws``).

    """

    kind: str
    groups: Optional[int] = None
    proxy: bool = False
    weight_standardization: bool = False

    def __str__(self) -> str:
        """Return the canonical spelling: ``gn4+pn+ws``."""
        base = self.kind if self.groups is None else f"{self.kind}{self.groups}"
        return base + "+pn" * self.proxy + "+ws" * self.weight_standardization

    def groups_for(self, num_features: int) -> int:
        """Return the number of groups that the norm makes of ``num_features`` channels.

        Raises:
            ValueError: the groups do not divide the channels, or the kind has no groups.

        """
        if self.kind == "ln":
            return 1
        if self.kind == "in":
            return num_features
        if self.groups is None:
            raise ValueError(f"norm spec '{self}' does not group channels")
        if num_features % self.groups:
            divisors = [d for d in range(1, num_features + 1) if num_features % d == 0]
            nearest = min(divisors, key=lambda d: (abs(d - (self.groups or 1)), d))
            raise ValueError(
                f"norm spec '{self}': {self.groups} groups do not divide {num_features} channels; "
                f"the nearest number of groups that does is {nearest}"
            )
        return self.groups


def parse_norm_spec(spec: str | NormSpec) -> NormSpec:
    """Read a norm spec: ``bn in ln gn<G> none``, with ``+pn`` and ``+ws`` behind it.

    Raises:
        ValueError: not a spec, or Proxy Norm behind a norm that it does not fit.

    """
    if isinstance(spec, NormSpec):
        return spec
    base, *suffixes = str(spec).strip().split("+")
    match = re.fullmatch(r"(bn|in|ln|none)|gn([1-9][0-9]*)", base)
    if match is None or len(set(suffixes)) < len(suffixes) or set(suffixes) - set(SUFFIXES):
        raise ValueError(
            f"unknown norm spec '{spec}': expected one of bn, in, ln, gn<groups>, none, with +pn "
            f"(Proxy Norm) or +ws (weight standardization) behind it{_suggestion(str(spec))}"
        )
    kind = match.group(1) or "gn"
    if "pn" in suffixes and kind in _WHY_NO_PROXY:
        raise ValueError(
            f"norm spec '{spec}': {_WHY_NO_PROXY[kind]}; "
            f"use '{kind}', or +pn behind ln or gn<groups>"
        )
    return NormSpec(
        kind=kind,
        groups=int(match.group(2)) if match.group(2) else None,
        proxy="pn" in suffixes,
        weight_standardization="ws" in suffixes,
    )


def _suggestion(spec: str) -> str:
    near = difflib.get_close_matches(spec.lower(), _EXAMPLES, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
