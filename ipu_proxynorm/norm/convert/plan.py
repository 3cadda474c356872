"""Which norm is fused with which activation calls, and how those calls are taken away."""

from __future__ import annotations

import dataclasses
from typing import Dict, FrozenSet, Iterable, List, Optional, Sequence, Set, Tuple

from torch import nn

from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.convert.activations import Known, same
from ipu_proxynorm.norm.convert.calls import Call, Site
from ipu_proxynorm.norm.convert.forward import Graphs, without_activations
from ipu_proxynorm.norm.convert.layers import NormLayer, has_hooks
from ipu_proxynorm.norm.convert.trace import Untraceable

# A module's attribute that holds a submodule.
Place = Tuple[nn.Module, str]


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
class Plan:
    """What is to be done to a network.

    Attributes:
        fusions: of each norm that can be converted.
        identities: activation modules whose every call is taken over.
        rewrites: modules whose forward calls activations that have to be left out there.

    """

    fusions: List[Fusion]
    identities: Set[Place] = dataclasses.field(default_factory=set)
    rewrites: Dict[nn.Module, Graphs] = dataclasses.field(default_factory=dict)


def plan(
    model: nn.Module, layers: Iterable[NormLayer], calls: Sequence[Call], known: Known
) -> Plan:
    """Return what converts the norms of a network, given the calls of its forward passes."""
    fusions = [fusion(layer, [c for c in calls if c.module is layer.module]) for layer in layers]
    at: Dict[Site, List[Call]] = {}
    for call in calls:
        if call.site is not None:
            at.setdefault(call.site, []).append(call)
    while True:
        done = Plan(fusions)
        if _drop_shared_sites(fusions, at):
            continue
        failures = _take_away(model, done, at, known)
        if not failures:
            for each in fusions:
                ends = each.taken or [c for c in calls if c.module is each.layer.module]
                each.written = any(call.is_written() for call in ends)
            return done
        for owner, reason in failures.items():
            for each in fusions:
                if any(call.owner is owner for call in each.taken):
                    each.block(reason)


def fusion(layer: NormLayer, calls: Sequence[Call]) -> Fusion:
    """Return what a norm can be fused with, by what reads its output wherever it is called."""
    found = Fusion(layer, layer.activation)
    if not calls:
        found.called, found.reason = False, "is not called in the forward pass"
        return found
    named = sorted({name for call in calls for name in call.keywords})
    if named:
        listed = ", ".join(f"{name}=" for name in named)
        found.called, found.reason = False, f"is called with {listed}: the unit's call has no names"
        return found
    if layer.activation is not None:
        return found
    for call in calls:
        following = list(dict.fromkeys(call.following()))
        texts = sorted({reader.text.rstrip("_") for reader in following}) or ["nothing"]
        if len(following) != 1 or following[0].activation is None:
            reads = f"{' and '.join(texts)} read{'s' * (len(texts) == 1)} it"
            if any(reader.activation is not None for reader in following):
                found.block(f"its output is read by {' and '.join(texts)}, not by one activation")
            elif any(reader.may_activate() for reader in following):
                found.block(f"no activation that is known follows: {reads}")
            else:
                found.block(f"no activation follows: {reads}")
                found.blocked = False
            return found
        activation, module = following[0].activation, following[0].module
        if found.activation is not None and not same(activation, found.activation):
            found.block(f"is followed by {found.activation.name} here and {activation.name} there")
            return found
        if module is not None and has_hooks(module):
            found.block(
                f"the {activation.name} that follows has hooks, which would lose their call"
            )
            return found
        found.activation = activation
        found.taken.append(following[0])
    return found


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
    model: nn.Module, done: Plan, at: Dict[Site, List[Call]], known: Known
) -> Dict[nn.Module, str]:
    """Fill in how the calls are taken away; return the modules whose forward cannot be traced."""
    calls_of: Dict[nn.Module, Set[Site]] = {}
    for site, calls in at.items():
        for call in calls:
            if call.module is not None:
                calls_of.setdefault(call.module, set()).add(site)
    taken = {_site(call): call for each in done.fusions for call in each.taken}
    erased: Dict[nn.Module, Dict[bool, Set[int]]] = {}
    places = registrations(model)
    for site, call in taken.items():
        module = call.module
        if module is not None:
            own = {(parent, name) for parent, name in places[module] if parent is site.owner}
            by_owner = {other for other in calls_of[module] if other.owner is site.owner}
            if calls_of[module] <= taken.keys():
                done.identities.update(places[module])
                continue
            if own and by_owner <= taken.keys():
                done.identities.update(own)
                continue
        sites = erased.setdefault(site.owner, {True: set(), False: set()})
        sites[site.training].add(site.ordinal)
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


def registrations(model: nn.Module) -> Dict[nn.Module, FrozenSet[Place]]:
    """Return the places of each submodule."""
    found: Dict[nn.Module, Set[Place]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                found.setdefault(child, set()).add((parent, name))
    return {module: frozenset(places) for module, places in found.items()}
