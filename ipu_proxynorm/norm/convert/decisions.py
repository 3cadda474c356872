"""What a forward decides by itself: what it draws, reads of values, and keeps for its next call.

A traced forward is one of its passes. Where the next may be another, it is no description of the
forward: the module is then left closed, as its calls are not all known.
"""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterator, List, Set, Tuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ipu_proxynorm.norm.convert.state import State
from ipu_proxynorm.norm.convert.values import Draws

_INTERNAL = frozenset(vars(nn.Module())) - {"training"}
_INTO_PYTHON = frozenset(
    ("__bool__", "__float__", "__int__", "__index__", "__complex__", "item", "tolist", "numpy")
)
_MISSING = object()


class Decisions(TorchFunctionMode):
    """Watches the forwards of a network while they are traced, or run.

    Attributes:
        reasons: by the ``id`` of a module, what its forward decides by itself.
        changed: what the forwards have changed.
        reads: by the ``id`` of a module, the attributes that were read and their first values.

    """

    def __init__(self, root: nn.Module, runs: bool) -> None:
        super().__init__()
        self.runs = runs  # whether tensors are real: draws are then no decisions by themselves
        self.stack: List[nn.Module] = [root]
        self.draws = Draws()
        self.reasons: Dict[int, str] = {}
        self.reads: Dict[int, Dict[str, Any]] = {}
        self.changed: Set[str] = set()
        self.paused = 0  # while modules run that are not looked into
        self._drew: Set[int] = set()
        self._read: Set[int] = set()

    def enter(self, module: nn.Module) -> None:
        """Say that a module's forward begins."""
        self.look()
        self.stack.append(module)

    def leave(self) -> None:
        """Say that the innermost forward ends."""
        self.look()
        self.stack.pop()

    def pause(self) -> None:
        """Say that a module runs that is not looked into."""
        self.look()
        self.paused += 1

    def go_on(self) -> None:
        """Say that it has run."""
        self.paused -= 1
        self.draws = Draws()

    def look(self) -> None:
        """Note what the innermost forward drew."""
        moved = [] if self.paused else list(self.draws.moved())
        if not moved:
            return
        self.draws, owner = Draws(), id(self.stack[-1])
        if self.runs and moved == ["torch"]:
            self._drew.add(owner)
            if owner in self._read:
                self.reasons.setdefault(owner, "decides by random numbers of torch")
        else:
            self.reasons.setdefault(owner, f"draws random numbers of {' and '.join(moved)}")

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note values of tensors that are read into Python."""
        name = getattr(func, "__name__", "")
        real = bool(args) and type(args[0]) in (Tensor, nn.Parameter)
        if real and name in _INTO_PYTHON and not self.paused:
            self.look()
            owner = id(self.stack[-1])
            self._read.add(owner)
            if owner in self._drew:
                self.reasons.setdefault(owner, "decides by random numbers of torch")
            elif not self.runs:
                self.reasons.setdefault(owner, "decides by the values of a tensor that it holds")
        return func(*args, **(kwargs or {}))

    def kept(self, state: State, modules: Dict[int, nn.Module]) -> None:
        """Note whose forward reads what it has changed: its next pass may be another.

        Args:
            state: of before the forward.
            modules: those looked into, by ``id``.

        """
        for owners, name in state.changed():
            if name.startswith("_tensor_constant"):  # torch.fx's
                continue
            self.changed.add(name)
            if not owners:  # a hook's, or the values of a tensor
                continue
            inside = owners & modules.keys()
            for owner in inside or modules.keys():
                attribute = inside and name in vars(modules[owner])
                if not attribute or name in self.reads.get(owner, {}):
                    self.reasons.setdefault(owner, f"reads and changes {name}")

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Note the reading of modules' attributes, too."""
        reads, own = self.reads, object.__getattribute__

        def spy(module: nn.Module, name: str) -> Any:
            if name.startswith("__") or name in _INTERNAL:
                return own(module, name)
            value = _MISSING
            try:
                value = own(module, name)
            finally:  # also of one that is not there
                if not callable(value) or isinstance(value, nn.Module):
                    reads.setdefault(id(module), {}).setdefault(name, value)
            return value

        before: Tuple[Any, ...] = (vars(nn.Module).get("__getattribute__", _MISSING),)
        nn.Module.__getattribute__ = spy  # type: ignore[method-assign,assignment]
        try:
            with self:
                yield
        finally:
            if before[0] is _MISSING:
                del nn.Module.__getattribute__
            else:
                nn.Module.__getattribute__ = before[0]  # type: ignore[method-assign]
