"""Makes ``import poptorch``, ``popdist`` and ``popart`` give the simulator, in children too."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Optional, Sequence

_PACKAGE = __name__.rsplit(".", 2)[0]  # the simulator
_HERE = Path(__file__).resolve().parent
_ALIASES = {
    "poptorch": _PACKAGE,
    "popdist": f"{_PACKAGE}.popdist",
    "popart": f"{_PACKAGE}.popart",
}
_FOLDER = str(_HERE / "shims")
_ROOT = str(_HERE.parents[2])  # where the top-level package lies


class _Loader(importlib.abc.Loader):
    """Gives the simulator's own module under the alias's name; it runs once, under its own."""

    def __init__(self, name: str, real_name: str) -> None:
        self.name = name
        self._real_name = real_name

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the real module; the import system then labels it with the alias."""
        module = importlib.import_module(self._real_name)
        spec.loader_state = {"spec": module.__spec__}
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module, which has run already, its own label back."""
        assert module.__spec__ is not None
        own = module.__spec__.loader_state["spec"]
        own.loader = _Loaded(own.loader)
        module.__spec__ = own

    def load_module(self, fullname: Optional[str] = None) -> ModuleType:
        """Return the module: ``poptorch_geometric`` asks for one so."""
        return importlib.import_module(fullname or self.name)


class _Loaded(importlib.abc.Loader):
    """The loader of a module that has run: ``load_module`` does not run it a second time.

    Everything else is asked of the loader that it had.
    """

    def __init__(self, loader: Any) -> None:
        self._loader: Any = loader._loader if isinstance(loader, _Loaded) else loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[ModuleType]:
        """Do as the loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Do as the loader does, for ``importlib.reload``."""
        self._loader.exec_module(module)

    def load_module(self, fullname: Optional[str] = None) -> ModuleType:
        """Return the module as it is."""
        return sys.modules[fullname or self._loader.name]


class _Alias(importlib.abc.MetaPathFinder):
    """Answers an import of an alias, or of a module in it, with the simulator's own module."""

    def find_spec(
        self, name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        """Return a specification for the names that this finder answers."""
        head, _, tail = name.partition(".")
        if head not in _ALIASES:
            return None
        real_name = _ALIASES[head] + ("." + tail if tail else "")
        if importlib.util.find_spec(real_name) is None:
            return None
        return importlib.machinery.ModuleSpec(name, _Loader(name, real_name))


def provide() -> None:
    """Install the aliases in this process, and for the processes that it starts."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Alias())
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    wanted = [path for path in (_FOLDER, _ROOT) if path not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*wanted, *paths]))
    # Processes of multiprocessing take over this process's paths rather than the environment's.
    sys.path += [path for path in (_FOLDER, _ROOT) if path not in sys.path]
