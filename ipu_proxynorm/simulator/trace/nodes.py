"""Autograd's nodes while a program is recorded: which lines of the user's they belong to."""

from __future__ import annotations

import functools
from typing import Any, Callable, Dict, Optional

import torch

from ipu_proxynorm.nested import tensors_in

from . import refusals
from .origins import Origin


class NodeOrigins:
    """The origins of autograd's nodes: their forward operations', marked as backward.

    ``at_work`` is the origin of the node that computes its gradient now, None outside the backward
    pass; ``name`` is what autograd calls that node.
    """

    def __init__(self) -> None:
        self._origins: Dict[Any, Origin] = {}
        self.at_work: Optional[Origin] = None
        self.name = ""

    def note(self, result: Any, where: Callable[[], Origin]) -> None:
        """Note that autograd's newest nodes, of this result, belong to the present operation."""
        nodes = [tensor.grad_fn for tensor in tensors_in(result) if tensor.grad_fn is not None]
        origin: Optional[Origin] = None
        while nodes:
            node = nodes.pop()
            if node in self._origins:
                continue
            origin = origin or where()._replace(backward=True)
            self._origins[node] = origin
            nodes.extend(parent for parent, _ in node.next_functions if parent is not None)

    def follow(self) -> None:
        """Let ``at_work`` and ``name`` tell the node whose gradient is computed, from now on.

        Raises:
            poptorch.Error: one is a ``torch.autograd.Function`` of the user's.

        """
        for node, origin in self._origins.items():
            is_recorded = getattr(getattr(node, "_forward_cls", None), "is_recorded", False)
            if isinstance(node, torch.autograd.function.BackwardCFunction) and not is_recorded:
                raise refusals.python_backward(type(node).__name__, origin)
            node.register_prehook(functools.partial(self._enter, origin, type(node).__name__))

    def _enter(self, origin: Origin, name: str, gradients: Any) -> None:
        self.at_work, self.name = origin, name
