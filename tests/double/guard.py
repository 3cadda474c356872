"""Lets our code reach of the simulator's objects only what PopTorch 3.4's have."""

from __future__ import annotations

import functools
import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, FrozenSet, Iterator, Set, Tuple

import torch

SURFACE: Dict[str, Any] = json.loads(
    (Path(__file__).with_name("surface.json")).read_text(encoding="utf-8")
)
SIMULATOR = "ipu_proxynorm.simulator"
PRODUCT = "ipu_proxynorm"


class NotInPopTorch(AttributeError):
    """Our code asked for something that PopTorch 3.4 does not have."""


def is_product(frame: Any) -> bool:
    """Tell whether a frame runs our code: the package, but not the simulator in it."""
    name = frame.f_globals.get("__name__", "")
    return name.split(".")[0] == PRODUCT and not (name + ".").startswith(f"{SIMULATOR}.")


def module_of(name: str) -> str:
    """Return the simulator's module for one of PopTorch's."""
    return SIMULATOR + name[len("poptorch") :]


def classes() -> Iterator[Tuple[str, str, Any]]:
    """Yield PopTorch's module, the name of a class, and the simulator's class for it."""
    for module, content in SURFACE.items():
        ours = importlib.import_module(module_of(module))
        for name in content["classes"]:
            found = getattr(ours, name, None)
            if isinstance(found, type) and found.__module__.startswith(SIMULATOR):
                yield module, name, found


@functools.lru_cache(maxsize=None)
def instance_names(base: type) -> FrozenSet[str]:
    """Return what torch's classes set on their instances."""
    if issubclass(base, torch.nn.Module):
        return frozenset(vars(torch.nn.Module()))
    if issubclass(base, torch.optim.Optimizer):
        return frozenset(vars(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)))
    if issubclass(base, torch.utils.data.DataLoader):
        return frozenset(vars(torch.utils.data.DataLoader([0])))
    return frozenset()


def names_of(name: str) -> Set[str]:
    """Return what PopTorch's class of that name, or one that it derives from, has."""
    for content in SURFACE.values():
        if name in content["classes"]:
            described = content["classes"][name]
            found = set(described["names"])
            for base in described["bases"]:
                if base.startswith("torch."):
                    continue
                found |= names_of(base.rpartition(".")[2].strip("'\""))
            return found
    return set()


def allowed(name: str, cls: type) -> FrozenSet[str]:
    """Return the names that instances of PopTorch's class have.

    Its own and inherited ones, and those of classes that are neither PopTorch's nor the
    simulator's: torch's, Python's.
    """
    found = names_of(name)
    for base in cls.__mro__:
        if not base.__module__.startswith(SIMULATOR):
            found |= set(vars(base)) | set(instance_names(base))
    return frozenset(found)


def close(cls: Any, names: FrozenSet[str]) -> None:
    """Refuse our code any other name of a class's instances."""
    own = cls.__getattribute__

    def looked_up(self: Any, name: str) -> Any:
        beyond = name not in names and not name.startswith("__") and type(self) is cls
        if beyond and is_product(sys._getframe(1)):
            # The executor passes on what the user's model has.
            model = object.__getattribute__(self, "__dict__").get("_user_model")
            if model is None or not hasattr(model, name):
                raise NotInPopTorch(f"PopTorch 3.4's {cls.__name__} has no {name!r}")
        return own(self, name)

    cls.__getattribute__ = looked_up


def close_all() -> None:
    """Close all classes that PopTorch has, too."""
    seen = set()
    for _, name, cls in list(classes()):
        if cls in seen:
            continue
        seen.add(cls)
        if "__getattribute__" not in vars(cls) and not issubclass(cls, (BaseException, tuple)):
            close(cls, allowed(name, cls))


class Closed(ModuleType):
    """A module of PopTorch's: its names, served by the simulator's module."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__file__ = str(Path(__file__).parent / "poptorch" / "__init__.py")

    def __getattr__(self, name: str) -> Any:
        module = super().__getattribute__("__name__")
        if name in SURFACE[module]["names"]:
            if f"{module}.{name}" in SURFACE:
                return importlib.import_module(f"{module}.{name}")
            return getattr(importlib.import_module(module_of(module)), name)
        raise NotInPopTorch(f"module {module!r} has no attribute {name!r}")
