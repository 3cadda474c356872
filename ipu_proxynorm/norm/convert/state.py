"""All that running a forward may change: noted before, told and put back after."""

from __future__ import annotations

import collections
import copy
import itertools
import random
import types
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Set, Tuple

import numpy as np
import torch
from torch import Tensor, nn

from ipu_proxynorm.norm.convert.values import (
    Draws,
    Pair,
    array_pair,
    bits_pair,
    cache_pair,
    generator_pair,
    tensor_pair,
    torch_generator_pair,
)

_MISSING = object()
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# What a module's own machinery keeps; whatever a hook notes is not the forward's doing.
_MACHINERY = frozenset(vars(nn.Module())) - {"training"}
# A module's attributes, and what it registers, go by their own names.
_REGISTERS = ("", "_parameters", "_buffers", "_modules")
_HOOKS = frozenset(name for name in _MACHINERY if name.endswith("hooks"))
_LIBRARIES = ("torch", "torchvision", "timm", "numpy", "ipu_proxynorm", "builtins")
_MOST = 200_000  # objects looked at: beyond, what a network holds is no state of its forward

# Names the thing, and tells whether it was changed; puts it back.
Changed = Callable[[], List[str]]
PutBack = Callable[[], None]


class _Note(NamedTuple):
    """Something that may be changed, by whose forward, and what it is called there."""

    owners: Set[int]
    changed: Changed
    put_back: PutBack


class State:
    """What a network's modules hold, and what its forwards can reach, as it stands now.

    Attributes, containers and plain objects in them, buffers and other tensors, iterators that
    count, random generators of their own and torch's, Python's and NumPy's; what classes, closures
    and global variables hold that the modules' code names. Not files, nor what a library keeps.

    Args:
        model: the network.
        parameters: note the parameters' values, too.

    """

    def __init__(self, model: nn.Module, parameters: bool = False) -> None:
        self._parameters = parameters
        self._notes: Dict[Any, _Note] = {}
        self._alive: List[Any] = []  # so that no two things have one identity
        self._classes = [(module, type(module)) for module in model.modules()]
        self._drawn = Draws()
        self._modes = (torch.is_grad_enabled(), torch.get_default_dtype())
        for module in model.modules():
            self._module(module)

    def changed(self) -> List[Tuple[Set[int], str]]:
        """Return what is not as it was: the ``id`` of whose it is, and its name there.

        What hooks note is none's, and neither are the values of tensors.
        """
        return [(note.owners, name) for note in self._notes.values() for name in note.changed()]

    def put_back(self) -> None:
        """Make everything what it was."""
        for module, cls in self._classes:
            if type(module) is not cls:
                module.__class__ = cls
        for note in self._notes.values():
            note.put_back()
        self._drawn.put_back()
        torch.set_grad_enabled(self._modes[0])
        if torch.get_default_dtype() != self._modes[1]:
            torch.set_default_dtype(self._modes[1])

    def _module(self, module: nn.Module) -> None:
        owner = id(module)
        self._dict(vars(module), owner, "", _MACHINERY)
        for name, value in list(vars(module).items()):
            empty = name in _HOOKS and not len(value)
            if type(value) not in _PLAIN and not empty:
                self._value(value, None if name in _HOOKS else owner, name, vars(module), name)
        for cls in type(module).__mro__:
            if cls.__module__.split(".")[0] not in _LIBRARIES:
                self._class(cls, owner)

    def _class(self, cls: type, owner: int) -> None:
        if not self._new(cls, owner):
            return
        values = {k: v for k, v in vars(cls).items() if not k.startswith("__")}

        def changed() -> List[str]:
            return [k for k, v in values.items() if not _same(vars(cls).get(k, _MISSING), v)]

        def put_back() -> None:
            for name in changed():
                setattr(cls, name, values[name])
            for name in [k for k in vars(cls) if not k.startswith("__") and k not in values]:
                delattr(cls, name)

        self._notes[id(cls)] = _Note({owner}, changed, put_back)
        for name, value in values.items():
            inner = getattr(value, "fget", getattr(value, "__func__", value))
            self._value(inner, owner, name)

    def _new(self, thing: Any, owner: Optional[int]) -> bool:
        """Whether a thing is met for the first time; else it is this owner's, too."""
        note = self._notes.get(id(thing))
        if note is not None:
            if owner is not None:
                note.owners.add(owner)
            return False
        self._alive.append(thing)
        return len(self._alive) < _MOST

    def _value(
        self,
        value: Any,
        owner: Optional[int],
        name: str,
        holder: Optional[Dict[Any, Any]] = None,
        key: Any = None,
    ) -> None:
        """Note what can be changed within a value."""
        if type(value) in _PLAIN or isinstance(value, (nn.Module, type, types.ModuleType)):
            return
        if isinstance(value, dict):
            self._dict(value, owner, name)
        elif isinstance(value, itertools.count):
            if holder is not None:
                self._count(value, owner, name, holder, key)
        elif isinstance(value, (types.FunctionType, types.MethodType)):
            self._function(value, owner)
        elif self._note_value(value, owner, name):
            return
        elif isinstance(value, (list, collections.deque, set)):
            self._container(value, owner, name)
        elif isinstance(value, (tuple, frozenset)):
            for item in value:
                self._value(item, owner, name)
        else:
            self._object(value, owner, name)

    def _note_value(self, value: Any, owner: Optional[int], name: str) -> bool:
        """Note a value that is changed as a whole: a tensor, an array, a generator, a cache."""
        pair: Optional[Pair] = None
        if isinstance(value, Tensor):
            if self._parameters or not isinstance(value, nn.Parameter):
                pair, owner = tensor_pair(value), None
        elif isinstance(value, np.ndarray):
            pair = array_pair(value)
        elif isinstance(value, (random.Random, np.random.RandomState)):
            pair = generator_pair(value)
        elif isinstance(value, np.random.Generator):
            pair = bits_pair(value.bit_generator)
        elif isinstance(value, torch.Generator):
            pair = torch_generator_pair(value)
        elif hasattr(value, "cache_info") and hasattr(value, "cache_clear"):
            pair = cache_pair(value)
            self._value(getattr(value, "__wrapped__", None), owner, name)
        else:
            return False
        if pair is not None and self._new(value, owner):
            differs, put_back = pair
            self._add(value, owner, lambda: [name] if differs() else [], put_back)
        return True

    def _add(self, thing: Any, owner: Optional[int], changed: Changed, put_back: PutBack) -> None:
        owners = set() if owner is None else {owner}
        self._notes[id(thing)] = _Note(owners, changed, put_back)

    def _dict(
        self,
        held: Dict[Any, Any],
        owner: Optional[int],
        name: str,
        hidden: frozenset[str] = frozenset(),
    ) -> None:
        """Note a dictionary, or with the empty name a module's or object's attributes."""
        if not self._new(held, owner):
            return
        saved = dict(held)

        def differing() -> List[Any]:
            keys = [k for k, v in saved.items() if not _same(held.get(k, _MISSING), v)]
            return keys + [k for k in held if k not in saved]

        def changed() -> List[str]:
            found = [str(k) for k in differing() if k not in hidden]
            return found if name in _REGISTERS else [name] * bool(found)

        def put_back() -> None:
            if differing() or list(held) != list(saved):
                held.clear()
                held.update(saved)

        self._add(held, owner, changed, put_back)
        if name and name != "_modules":
            for key, value in saved.items():
                self._value(value, owner, name, held, key)

    def _container(self, held: Any, owner: Optional[int], name: str) -> None:
        if not self._new(held, owner):
            return
        saved = list(held)

        def changed() -> List[str]:
            now = list(held)
            alike = len(now) == len(saved) and all(map(_same, now, saved))
            return [] if alike else [name]

        def put_back() -> None:
            if changed():
                held.clear()
                getattr(held, "update", getattr(held, "extend", None))(saved)  # type: ignore[misc]

        self._add(held, owner, changed, put_back)
        for value in saved:
            self._value(value, owner, name)

    def _object(self, thing: Any, owner: Optional[int], name: str) -> None:
        """Note a plain object by its attributes."""
        if type(thing).__module__.split(".")[0] in ("torch", "numpy", "builtins", "_io"):
            return
        slots = [s for c in type(thing).__mro__ for s in _slots(c) if hasattr(thing, s)]
        attributes = getattr(thing, "__dict__", None)
        if isinstance(attributes, dict):
            self._dict(attributes, owner, name)
        if slots and self._new(thing, owner):
            saved = {s: getattr(thing, s) for s in slots}

            def changed() -> List[str]:
                differ = [s for s, v in saved.items() if not _same(getattr(thing, s, None), v)]
                return [name] if differ else []

            def put_back() -> None:
                if changed():
                    for slot, value in saved.items():
                        object.__setattr__(thing, slot, value)

            self._add(thing, owner, changed, put_back)
            for value in saved.values():
                self._value(value, owner, name)

    def _count(
        self,
        counter: itertools.count[Any],
        owner: Optional[int],
        name: str,
        holder: Dict[Any, Any],
        key: Any,
    ) -> None:
        if not self._new(counter, owner):
            return
        saved, said = copy.copy(counter), repr(counter)

        def put_back() -> None:
            if repr(counter) != said:
                holder[key] = saved

        self._add(counter, owner, lambda: [name] if repr(counter) != said else [], put_back)

    def _function(self, function: Any, owner: Optional[int]) -> None:
        """Note what a function's closure and the global variables that it names hold."""
        if isinstance(function, types.MethodType):
            self._value(function.__self__, owner, "self")
            function = function.__func__
        if not isinstance(function, types.FunctionType) or not self._new(function, owner):
            return
        library = (function.__module__ or "").split(".")[0] in _LIBRARIES
        self._notes[id(function)] = _Note(set() if owner is None else {owner}, list, lambda: None)
        for cell, name in zip(function.__closure__ or (), function.__code__.co_freevars):
            self._cell(cell, owner, name)
        if library:
            return
        held = function.__globals__
        for name in _names(function.__code__):
            self._global(held, name, owner)

    def _cell(self, cell: Any, owner: Optional[int], name: str) -> None:
        if not self._new(cell, owner):
            return
        saved = _contents(cell)

        def put_back() -> None:
            if saved is not _MISSING and not _same(_contents(cell), saved):
                cell.cell_contents = saved

        self._add(cell, owner, lambda: [] if _same(_contents(cell), saved) else [name], put_back)
        self._value(saved, owner, name)

    def _global(self, held: Dict[str, Any], name: str, owner: Optional[int]) -> None:
        key = (id(held), name)
        if key in self._notes:
            if owner is not None:
                self._notes[key].owners.add(owner)
            return
        saved = held.get(name, _MISSING)

        def changed() -> List[str]:
            return [] if _same(held.get(name, _MISSING), saved) else [name]

        def put_back() -> None:
            if changed() and saved is _MISSING:
                del held[name]
            elif changed():
                held[name] = saved

        self._notes[key] = _Note(set() if owner is None else {owner}, changed, put_back)
        self._value(saved, owner, name, held, name)


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one object, or plain and equal."""
    if one is other:
        return True
    return isinstance(one, _PLAIN) and type(one) is type(other) and bool(one == other)


def _slots(cls: type) -> List[str]:
    slots = vars(cls).get("__slots__", ())
    named = [slots] if isinstance(slots, str) else list(slots)
    return [s for s in named if s not in ("__dict__", "__weakref__")]


def _names(code: types.CodeType) -> Set[str]:
    """Return the names that a function's code, and the functions within it, use."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _names(constant)
    return found


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a variable that has no value yet
        return _MISSING
