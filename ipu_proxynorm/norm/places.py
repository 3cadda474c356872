"""Where a network holds its modules: one may be in several places, under several names."""

from __future__ import annotations

from typing import Callable, Dict, FrozenSet, Optional, Set, Tuple

from torch import nn

# A module's attribute that holds a submodule.
Place = Tuple[nn.Module, str]


def registrations(model: nn.Module) -> Dict[nn.Module, FrozenSet[Place]]:
    """Return the places of each submodule; ``named_children`` and its like give one of them."""
    found: Dict[nn.Module, Set[Place]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                found.setdefault(child, set()).add((parent, name))
    return {module: frozenset(places) for module, places in found.items()}


def replace_submodules(
    model: nn.Module, instead: Callable[[nn.Module], Optional[nn.Module]]
) -> None:
    """Put other modules in the place of submodules, in place; what was one module stays one.

    Args:
        model: the network.
        instead: returns what takes a submodule's place; None: it stays.

    """
    for module, places in registrations(model).items():
        other = instead(module)
        if other is not None:
            for parent, name in places:
                setattr(parent, name, other)
