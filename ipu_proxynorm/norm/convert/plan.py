"""Which norm is fused with which activation calls, and how those calls are taken away."""

from __future__ import annotations

import dataclasses
from typing import Dict, FrozenSet, Iterable, List, Optional, Sequence, Set

from torch import nn

from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.convert.activations import Known, same
from ipu_proxynorm.norm.convert.calls import Call, Site
from ipu_proxynorm.norm.convert.forward import Forward, without_activations
from ipu_proxynorm.norm.convert.layers import NormLayer, has_hooks
from ipu_proxynorm.norm.convert.reading import Reading
from ipu_proxynorm.norm.convert.trace import Untraceable
from ipu_proxynorm.norm.places import Place, registrations


@dataclasses.dataclass(eq=False)
class Fusion:
    """What becomes of one norm.

    Attributes:
        layer: the norm.
        activation: fused with it; None: no activation within.
        taken: the activation calls that it takes over.
        reason: why there is no activation within, or why it cannot be converted at all.
        blocked: an activation does follow, or may, but cannot be fused.
        called: whether the norm is called at all, in a way that the unit can be.
        written: something may write into the activation in place.

    """

    layer: NormLayer
    activation: Optional[Activation] = None
    taken: List[Call] = dataclasses.field(default_factory=list)
    reason: str = ""
    blocked: bool = False
    called: bool = True
    written: bool = False

    def block(self, reason: str) -> None:
        """Leave the activation where it is."""
        self.activation, self.taken = self.layer.activation, []
        self.reason, self.blocked = reason, True


@dataclasses.dataclass
class ConversionPlan:
    """What is to be done to a network.

    Attributes:
        fusions: the fusions of each norm that can be converted.
        identities: activation modules whose every call is taken over.
        rewrites: modules whose forward calls activations that have to be left out there.

    """

    fusions: List[Fusion]
    identities: Set[Place] = dataclasses.field(default_factory=set)
    rewrites: Dict[nn.Module, Forward] = dataclasses.field(default_factory=dict)


def plan(
    model: nn.Module, layers: Iterable[NormLayer], reading: Reading, known: Known
) -> ConversionPlan:
    """Return what converts the norms of a network, given the calls of its forward passes."""
    calls = reading.calls
    fusions = [_fusion_read(model, layer, reading) for layer in layers]
    at: Dict[Site, List[Call]] = {}
    for call in calls:
        if call.site is not None:
            at.setdefault(call.site, []).append(call)
    while True:
        done = ConversionPlan(fusions)
        if _drop_shared_sites(fusions, at):
            continue
        failures = _take_away(model, done, at, reading, known)
        if not failures:
            for each in fusions:
                ends = each.taken or [c for c in calls if c.module is each.layer.module]
                each.written = any(call.is_written() for call in ends)
            return done
        for owner, reason in failures.items():
            for each in fusions:
                if any(call.owner is owner for call in each.taken):
                    each.block(reason)


def _fusion_read(model: nn.Module, layer: NormLayer, reading: Reading) -> Fusion:
    calls = [call for call in reading.calls if call.module is layer.module]
    closed = reading.why_closed(model, layer.module)
    if not closed:
        return fusion(layer, calls)
    found = Fusion(layer)
    partly = [call for call in reading.partly if call.module is layer.module]
    found.reason = _why_not_called(calls + partly) if calls + partly else ""
    found.called = not found.reason
    if found.called:
        found.block(closed)
    return found


def fusion(layer: NormLayer, calls: Sequence[Call]) -> Fusion:
    """Return what a norm can be fused with, by what reads its output wherever it is called."""
    found = Fusion(layer, layer.activation)
    found.reason = _why_not_called(calls)
    if found.reason:
        found.called = False
    elif layer.activation is None:
        all(_take(found, call) for call in calls)  # to the first that cannot be
    return found


def _why_not_called(calls: Sequence[Call]) -> str:
    """Return why the unit cannot be called in the norm's place; empty: it can."""
    if not calls:
        return "is not called in the forward pass"
    named = sorted({name for call in calls for name in call.keywords})
    if named:
        listed = ", ".join(f"{name}=" for name in named)
        return f"is called with {listed}: the unit's call has no names"
    return ""


def _take(found: Fusion, call: Call) -> bool:
    """Take over the activation that follows one call; where none can be, note why, for all."""
    following = list(dict.fromkeys(call.following()))
    if len(following) != 1 or following[0].activation is None:
        _take_none(found, following)
        return False
    reader = following[0]
    reason = _why_apart(found, reader)
    if reason:
        found.block(reason)
        return False
    found.activation = reader.activation
    found.taken.append(reader)
    return True


def _take_none(found: Fusion, following: Sequence[Call]) -> None:
    """Note that no activation is the only reader of the norm's output."""
    texts = sorted({reader.text.rstrip("_") for reader in following}) or ["nothing"]
    reads = f"{' and '.join(texts)} read{'s' * (len(texts) == 1)} it"
    if any(reader.activation is not None for reader in following):
        found.block(f"its output is read by {' and '.join(texts)}, not by one activation")
    elif any(reader.may_activate() for reader in following):
        found.block(f"no activation that is known follows: {reads}")
    else:
        found.block(f"no activation follows: {reads}")
        found.blocked = False


def _why_apart(found: Fusion, reader: Call) -> str:
    """Return why the activation that follows cannot be fused; empty: it can."""
    activation = reader.activation
    assert activation is not None
    if found.activation is not None and not same(activation, found.activation):
        return f"is followed by {found.activation.name} here and {activation.name} there"
    if reader.module is not None and has_hooks(reader.module):
        return f"the {activation.name} that follows has hooks, which would lose their call"
    return ""


def _drop_shared_sites(fusions: Sequence[Fusion], at: Dict[Site, List[Call]]) -> bool:
    """Block what would take over only some of the calls of one place; say whether any was."""
    taken = {id(call) for each in fusions for call in each.taken}
    dropped = False
    for each in fusions:
        if any(id(c) not in taken for call in each.taken for c in at[_site(call)]):
            each.block("the activation that follows is called for other tensors in the same place")
            dropped = True
    return dropped


def _site(call: Call) -> Site:
    assert call.site is not None
    return call.site


def _take_away(
    model: nn.Module,
    done: ConversionPlan,
    at: Dict[Site, List[Call]],
    reading: Reading,
    known: Known,
) -> Dict[nn.Module, str]:
    """Fill in how the calls are taken away; return the modules whose forward cannot be traced."""
    taken = {_site(call): call for each in done.fusions for call in each.taken}
    sites = _sites_of_modules(at)
    places = registrations(model)
    erased: Dict[nn.Module, Dict[bool, Set[int]]] = {}
    for site, call in taken.items():
        identities: Set[Place] = set()
        if call.module is not None:
            identities = _replaceable(site, sites[call.module], taken, places[call.module], reading)
        done.identities.update(identities)
        if not identities:
            modes = erased.setdefault(site.owner, {True: set(), False: set()})
            modes[site.training].add(site.ordinal)
    failures: Dict[nn.Module, str] = {}
    for owner, ordinals in erased.items():
        wanted = {mode: frozenset(found) for mode, found in ordinals.items()}
        try:
            done.rewrites[owner] = without_activations(owner, wanted, known)
        except Untraceable as error:
            failures[owner] = (
                f"the activation that follows is called in the forward of {type(owner).__name__}, "
                f"which cannot be rewritten: {error}"
            )
    return failures


def _sites_of_modules(at: Dict[Site, List[Call]]) -> Dict[nn.Module, Set[Site]]:
    """Return where each activation module is called."""
    sites: Dict[nn.Module, Set[Site]] = {}
    for site, calls in at.items():
        for call in calls:
            if call.module is not None:
                sites.setdefault(call.module, set()).add(site)
    return sites


def _replaceable(
    site: Site,
    sites: Set[Site],
    taken: Dict[Site, Call],
    places: FrozenSet[Place],
    reading: Reading,
) -> Set[Place]:
    """Return the places in which an activation module becomes ``nn.Identity``.

    Args:
        site: where it is called for a norm.
        sites: all its calls.
        taken: the calls that norms take over, of all modules.
        places: where it is registered.
        reading: whose calls are all known.

    Returns:
        All places, where every call is known and norms take over them all; those in the site's
        owner, where they take over every call from there; else none.
    """
    seen = all(id(p) in reading.into and id(p) not in reading.closed for p, _ in places)
    if seen and sites <= taken.keys():
        return set(places)
    if {other for other in sites if other.owner is site.owner} <= taken.keys():
        return {(parent, name) for parent, name in places if parent is site.owner}
    return set()
