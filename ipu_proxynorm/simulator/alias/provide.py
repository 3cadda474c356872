"""Makes ``import poptorch`` and ``import popdist`` give the simulator, in child processes too."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, Dict, Optional, Sequence

_PACKAGE = __name__.rsplit(".", 2)[0]  # the simulator
_HERE = Path(__file__).resolve().parent
_ALIASES = {"poptorch": _PACKAGE, "popdist": f"{_PACKAGE}.popdist"}
_FOLDER = str(_HERE / "shims")
_ROOT = str(_HERE.parents[2])  # where the top-level package lies


class _Alias(importlib.abc.MetaPathFinder, importlib.abc.Loader):
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
        spec = importlib.machinery.ModuleSpec(name, self)
        spec.loader_state = {"real": real_name}
        return spec

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Return the real module; the import system then labels it with the alias."""
        state: Dict[str, Any] = spec.loader_state
        module = importlib.import_module(state["real"])
        state["spec"] = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Give the module, which has run already, its own label back."""
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state["spec"]


def provide() -> None:
    """Install the aliases in this process, and for the processes that it starts."""
    if not any(isinstance(finder, _Alias) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Alias())
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    wanted = [path for path in (_FOLDER, _ROOT) if path not in paths]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*wanted, *paths]))
    # Processes of multiprocessing take over this process's paths rather than the environment's.
    sys.path += [path for path in (_FOLDER, _ROOT) if path not in sys.path]
