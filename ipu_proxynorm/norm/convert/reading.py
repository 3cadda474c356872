"""The calls of a whole network's forward passes; forwards that decide by themselves stay closed."""

from __future__ import annotations

from typing import Any, Dict, FrozenSet, List, NamedTuple, Optional, Sequence, Set, Tuple

from torch import Tensor, nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm.convert.activations import Known
from ipu_proxynorm.norm.convert.calls import Call
from ipu_proxynorm.norm.convert.layers import NormLayer
from ipu_proxynorm.norm.convert.trace import (
    Looking,
    Untraceable,
    defaults,
    recorded,
    traced,
)

_MODES = (True, False)


class Reading(NamedTuple):
    """What is known of a network's forward passes, in training and in inference.

    Attributes:
        calls: of the forwards that are looked into.
        closed: by the ``id`` of a module, why its forward is not: not all its calls are known.
        partly: calls seen in closed forwards; there may be others.
        into: the ``id`` of each module whose calls are all known.

    """

    calls: List[Call]
    closed: Dict[int, str]
    partly: List[Call]
    into: FrozenSet[int]

    def why_closed(self, model: nn.Module, module: nn.Module) -> str:
        """Return why it is not known where a module is called; empty: it is."""
        if not self.closed:
            return ""
        names = [name for name, found in model.named_modules() if found is module]
        for name in names:
            parents = [model.get_submodule(name[:i]) for i in _ends(name)]
            for parent in reversed(parents):
                if id(parent) in self.closed:
                    kind = type(parent).__name__
                    return f"is called in the forward of {kind}, which {self.closed[id(parent)]}"
                if not isinstance(parent, (nn.ModuleList, nn.ModuleDict)):
                    break
        return ""


def _ends(name: str) -> List[int]:
    return [0, *(i for i, letter in enumerate(name) if letter == ".")]


def read(model: nn.Module, layers: Sequence[NormLayer], known: Known, example: Any) -> Reading:
    """Return the calls of a network.

    A forward that draws random numbers of its own, reads values, or keeps something for its next
    call may go another way next time. It is then taken as one call that may be anything, and what
    lies within is looked into by itself.

    Raises:
        UserError: the network cannot be traced, nor run on the example.

    """
    if not layers:
        return Reading([], {}, [], frozenset())
    norms = {id(layer.module) for layer in layers}
    into = {
        id(module)
        for module in model.modules()
        if id(module) not in norms
        and (isinstance(module, nn.Sequential) or any(id(m) in norms for m in module.modules()))
    }
    reader = _Reader(known, Reading([], {}, [], frozenset(into)))
    arguments = None
    if example is not None:
        arguments = (example,) if isinstance(example, Tensor) else tuple(example)
    try:
        reader.read(model, "", arguments)
    except Untraceable as error:
        if example is None:
            raise UserError(
                f"the model cannot be traced by torch.fx ({error}): give convert_norms an example "
                "input, as example=, to see its forward pass run"
            ) from error
        raise UserError(f"the model's forward pass cannot be recorded {error}") from error
    return reader.reading


class _Reader:
    def __init__(self, known: Known, reading: Reading) -> None:
        self.known, self.reading = known, reading
        self.alone: Set[int] = set()

    def read(self, root: nn.Module, outer: str, example: Optional[Sequence[Any]] = None) -> None:
        """Read one module, and by themselves the modules within those that stay closed.

        Raises:
            Untraceable: its forward cannot be traced, nor run on the example.

        """
        closed = self.reading.closed
        looking = Looking(self.reading.into, closed, outer)
        while id(root) not in closed:
            calls: List[Call] = []
            reasons: Dict[int, str] = {}
            for mode in _MODES:
                found, decided = self._calls(root, looking, mode, example)
                calls += found
                reasons.update(decided)
            if not reasons:
                self.reading.calls.extend(calls)
                break
            self.reading.partly.extend(call for call in calls if id(call.owner) in reasons)
            closed.update(reasons)
        for module in [m for m in root.modules() if id(m) in closed]:
            for child in _children(module):
                known = id(child) in closed or id(child) in self.alone
                if id(child) in self.reading.into and not known:
                    self._read_alone(child, type(module).__name__)

    def _calls(
        self, root: nn.Module, looking: Looking, training: bool, example: Optional[Sequence[Any]]
    ) -> Tuple[List[Call], Dict[int, str]]:
        try:
            seen = traced(root, looking, training, self.known)
        except Untraceable:
            if example is None:
                raise
            calls, decisions = recorded(root, looking, training, self.known, example)
            return calls, decisions.reasons
        return list(seen.calls.values()), seen.decisions.reasons

    def _read_alone(self, module: nn.Module, outer: str) -> None:
        """Read a module that a closed forward calls: what follows there is not known."""
        self.alone.add(id(module))
        if defaults(module):
            listed = ", ".join(f"{name}={value}" for name, value in defaults(module).items())
            self.reading.closed[id(module)] = f"has optional arguments ({listed})"
        try:
            self.read(module, outer)
        except Untraceable as error:
            self.reading.closed[id(module)] = f"cannot be traced by torch.fx ({error})"
            self.read(module, outer)


def _children(module: nn.Module) -> List[nn.Module]:
    """Return the modules directly within one; lists are no modules that are called."""
    found: List[nn.Module] = []
    for child in module.children():
        lists = isinstance(child, (nn.ModuleList, nn.ModuleDict))
        found.extend(_children(child) if lists else [child])
    return found
