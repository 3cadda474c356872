"""Lists the names and signatures of PopTorch 3.4's Python API, from a checkout of its sources.

    python tests/double/read_surface.py POPTORCH > tests/double/surface.json

Names alone: module-level ones, those of each class (methods, properties, what its methods set on
``self``, options that it creates), its bases, and parameters. The double serves these and no more.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Set

#: Parts of the API that are not in Python: what ``python/poptorch.cpp`` and the build add.
COMPILED = {"poptorch": ["__version__", "__file__", "__path__", "__name__", "poptorch_core"]}


def parameters(function: Any) -> List[str]:
    """Return parameters as ``name``, ``name=``, ``*name`` and ``**name``, after ``self``."""
    given = function.args
    plain = [*getattr(given, "posonlyargs", []), *given.args]
    defaults = [False] * (len(plain) - len(given.defaults)) + [True] * len(given.defaults)
    found = [arg.arg + "=" * has for arg, has in zip(plain, defaults)]
    if given.vararg:
        found.append(f"*{given.vararg.arg}")
    found += [
        arg.arg + "=" * (d is not None) for arg, d in zip(given.kwonlyargs, given.kw_defaults)
    ]
    if given.kwarg:
        found.append(f"**{given.kwarg.arg}")
    return found


def is_static(function: Any) -> bool:
    """Tell whether a method takes no ``self``."""
    return any(getattr(d, "id", "") == "staticmethod" for d in function.decorator_list)


def attributes(node: ast.ClassDef) -> Set[str]:
    """Return what a class's methods set on ``self``, its class variables, and its options."""
    found: Set[str] = set()
    for inner in ast.walk(node):
        targets: List[Any] = []
        if isinstance(inner, ast.Assign):
            targets = inner.targets
        elif isinstance(inner, (ast.AnnAssign, ast.AugAssign)):
            targets = [inner.target]
        for target in targets:
            for one in getattr(target, "elts", [target]):
                if isinstance(one, ast.Attribute) and getattr(one.value, "id", "") == "self":
                    found.add(one.attr)
        if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Attribute):
            called = inner.func.attr
            if called in ("createOrSet", "set", "setOptions") or (
                called == "__init__" and isinstance(inner.func.value, ast.Call)
            ):
                found |= {k.arg for k in inner.keywords if k.arg}
    for line in node.body:
        for target in line.targets if isinstance(line, ast.Assign) else []:
            found.add(getattr(target, "id", ""))
        if isinstance(line, ast.AnnAssign):
            found.add(getattr(line.target, "id", ""))
    return found - {""}


def read_class(node: ast.ClassDef) -> Dict[str, Any]:
    """Return bases, names and methods' parameters of a class."""
    methods = {
        f.name: parameters(f)[0 if is_static(f) else 1 :]
        for f in node.body
        if isinstance(f, ast.FunctionDef)
    }
    return {
        "bases": [ast.unparse(base) for base in node.bases],
        "names": sorted({*attributes(node), *methods}),
        "methods": methods,
    }


def read_module(text: str) -> Dict[str, Any]:
    """Return a module's names, functions with parameters, and classes."""
    tree = ast.parse(text)
    names: Set[str] = set()
    stars: List[str] = []
    functions: Dict[str, List[str]] = {}
    classes: Dict[str, Any] = {}
    public = None
    for node in ast.walk(tree):  # classes of functions and of classes, too
        if isinstance(node, ast.ClassDef):
            classes[node.name] = read_class(node)
    statements = list(tree.body)
    while statements:
        node = statements.pop(0)
        if isinstance(node, (ast.If, ast.Try)):
            statements = [*node.body, *node.orelse, *statements]
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
            functions[node.name] = parameters(node)
        elif isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            stars.append((node.module or "").rpartition(".")[2])
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(a.asname or a.name).partition(".")[0] for a in node.names}
        elif isinstance(node, ast.Assign):
            named = {t.id for t in node.targets if isinstance(t, ast.Name)}
            names |= named
            if "__all__" in named:
                public = ast.literal_eval(node.value)
        elif isinstance(node, ast.AnnAssign):
            names.add(getattr(node.target, "id", ""))
    shown = public if public is not None else [n for n in names if not n.startswith("_")]
    return {
        "names": sorted(names - {""}),
        "public": sorted(shown),
        "stars": stars,
        "functions": functions,
        "classes": classes,
    }


def read(sources: Path) -> Dict[str, Any]:
    """Return the API of a checkout, by module."""
    modules = {}
    for path in sorted((sources / "python").glob("*.py")):
        name = "poptorch" if path.stem == "__init__" else f"poptorch.{path.stem}"
        modules[name] = read_module(path.read_text(encoding="utf-8"))
    for module in modules.values():
        for star in module.pop("stars"):
            module["names"] = sorted({*module["names"], *modules[f"poptorch.{star}"]["public"]})
    for name, more in COMPILED.items():
        modules[name]["names"] = sorted({*modules[name]["names"], *more})
    for module in modules.values():
        del module["public"]
    return modules


if __name__ == "__main__":
    # A line for each class.
    dumped = json.dumps(read(Path(sys.argv[1])), sort_keys=True)
    print(dumped.replace(', "names": [', ',\n "names": [').replace('}, "', '},\n "'))
