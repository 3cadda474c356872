"""The operators that PopTorch 3.4's compiler accepts."""

from __future__ import annotations

import functools
import os
from typing import Any, FrozenSet, Optional

import torch

# What torch makes of accepted operators on the way to its kernels, in one version or another, and
# what only manages tensors.
_ALSO_ACCEPTED = frozenset({
    "alias",
    "as_strided",
    "constant_pad_nd",
    "copy",
    "detach",
    "empty",
    "empty_like",
    "empty_strided",
    "fill",
    "lift",
    "lift_fresh",
    "linspace",
    "new_empty",
    "new_empty_strided",
    "resize",
    "safe_softmax",
    "scalar_tensor",
    "set",
    "to_copy",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "vdot",
    "view_as",
    "zero",
})  # fmt: skip


@functools.lru_cache(maxsize=None)
def accepted() -> FrozenSet[str]:
    """Return the names of the accepted aten operators, without underscores around them."""
    path = os.path.join(os.path.dirname(__file__), "data", "aten_ops.txt")
    with open(path, encoding="ascii") as file:
        lines = [line.strip() for line in file if not line.startswith("#")]
    return frozenset(line.strip("_") for line in lines if line)


def is_accepted(operator: str, function: Optional[str]) -> bool:
    """Tell whether the compiler accepts an operator.

    Args:
        operator: its name, without namespace and overload.
        function: the name of the torch function that the model called, if it called one: torch
            versions differ in the operators that they make of a function.

    """
    names = accepted()
    return (
        operator.strip("_") in names
        or operator.strip("_") in _ALSO_ACCEPTED
        or (function is not None and function.strip("_") in names)
    )


def is_computed_by_torch(function: Any) -> bool:
    """Tell whether an operator of constants is computed while the program is compiled.

    PopTorch lets torch compute what depends on constants alone, and only then looks for operators
    that it does not have (``LowerToPopartFactories.cpp:54, 99``). It must be no random one, and
    torch must infer its type on meta tensors (``TypeInferenceHandler.cpp:33``).
    """
    if getattr(torch, "Tag").nondeterministic_seeded in getattr(function, "tags", ()):  # noqa: B009
        return False
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key
    return bool(has_kernel(function.name(), "Meta"))
