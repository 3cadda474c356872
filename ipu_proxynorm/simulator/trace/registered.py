"""``torch.ops.poptorch``: operators that programs call by their registered names."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional

import torch

_NAMESPACE = "poptorch::"

# What implements each operator, by its name without the namespace.
_functions: Dict[str, Callable] = {}
# Registrations last as long as the library object.
_libraries: List[Any] = []


def register(schemas: Dict[str, str], functions: Dict[str, Callable]) -> None:
    """Register operators with torch, once; where PopTorch itself is loaded they are there already.

    Args:
        schemas: arguments and results of each operator, by name.
        functions: what each computes, of operators of torch alone: torch differentiates it.

    """
    if _libraries or hasattr(torch.ops.poptorch, next(iter(schemas))):
        return
    library = torch.library.Library(_NAMESPACE[:-2], "DEF")
    for name, schema in schemas.items():
        library.define(name + schema)
        library.impl(name, functions[name], "CompositeImplicitAutograd")
    _libraries.append(library)
    _functions.update(functions)


def function_of(operator: Any) -> Optional[Callable]:
    """Return what computes one of PopTorch's operators, or None for anything else."""
    name = getattr(operator, "_qualified_op_name", None)  # of all overloads together
    if name is None:
        name = getattr(getattr(operator, "_schema", None), "name", "")
    if not isinstance(name, str) or not name.startswith(_NAMESPACE):
        return None
    return _functions.get(name[len(_NAMESPACE) :])
