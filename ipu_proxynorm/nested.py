"""Nested arguments and results of operators: the tensors in them, and others in their places."""

from __future__ import annotations

from typing import Any, Callable, Iterable, List, Optional

import torch


def tensors_in(tree: Any) -> List[torch.Tensor]:
    """Return the tensors in nested lists, tuples and dictionaries."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [tensor for element in tree for tensor in tensors_in(element)]
    return []


def map_tensors(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Return a copy of ``tree`` with ``function(tensor)`` in the place of each tensor."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(function, element) for element in tree)
    if isinstance(tree, dict):
        return {key: map_tensors(function, value) for key, value in tree.items()}
    return tree


def stand_in(types: Iterable[type]) -> Optional[type]:
    """Return the class, of those that a function of torch is given, that is no tensor's.

    Its objects stand for tensors, and compute torch's functions by their ``__torch_function__``.
    """
    return next((kind for kind in types if not issubclass(kind, torch.Tensor)), None)
