"""Norm specs: the short strings, such as ``gn4+pn``, that name a normalization."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from typing import Dict, List, Optional

SUFFIXES = ("pn", "ws")


@dataclass(frozen=True)
class NormKind:
    """One kind of norm.

    Attributes:
        takes_groups: whether a number of groups stands behind its name.
        why_no_proxy: why Proxy Norm does not go behind it; "" where it does.

    """

    takes_groups: bool = False
    why_no_proxy: str = ""


#: The kinds by name; `modules.NORM_UNITS` makes the units of each.
KINDS: Dict[str, NormKind] = {
    "bn": NormKind(
        why_no_proxy="Batch Norm does over the batch what Proxy Norm stands in for",
    ),
    "in": NormKind(
        why_no_proxy="Instance Norm erases what differs between instances, and Proxy Norm cannot "
        "restore it",
    ),
    "ln": NormKind(),
    "gn": NormKind(takes_groups=True),
    "none": NormKind(
        why_no_proxy="the proxy variable stands for a normalized pre-activation, and none is "
        "normalized",
    ),
}


@dataclass(frozen=True)
class NormSpec:
    """What a norm spec says.

    Attributes:
        kind: one of `KINDS`.
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
    match = re.fullmatch(r"([a-z_]+)([1-9][0-9]*)?", base)
    known = KINDS.get(match[1]) if match else None
    if (
        match is None
        or known is None
        or known.takes_groups != bool(match[2])
        or len(set(suffixes)) < len(suffixes)
        or set(suffixes) - set(SUFFIXES)
    ):
        raise ValueError(
            f"unknown norm spec '{spec}': expected one of {', '.join(_spelt())}, with +pn "
            f"(Proxy Norm) or +ws (weight standardization) behind it{_suggestion(str(spec))}"
        )
    if "pn" in suffixes and known.why_no_proxy:
        proxied = " or ".join(_spelt(proxied=True))
        raise ValueError(
            f"norm spec '{spec}': {known.why_no_proxy}; use '{match[1]}', or +pn behind {proxied}"
        )
    return NormSpec(
        kind=match[1],
        groups=int(match[2]) if match[2] else None,
        proxy="pn" in suffixes,
        weight_standardization="ws" in suffixes,
    )


def _spelt(proxied: bool = False) -> List[str]:
    """Return how the kinds are written, of those that Proxy Norm goes behind or of all."""
    return [
        f"{name}<groups>" if kind.takes_groups else name
        for name, kind in KINDS.items()
        if not (proxied and kind.why_no_proxy)
    ]


def _suggestion(spec: str) -> str:
    examples = [
        f"{name}{groups}{suffix}"
        for name, kind in KINDS.items()
        for groups in ((4, 8, 16, 32) if kind.takes_groups else ("",))
        for suffix in ("", "+pn", "+ws", "+pn+ws")
        if not ("pn" in suffix and kind.why_no_proxy)
    ]
    near = difflib.get_close_matches(spec.lower(), examples, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""
