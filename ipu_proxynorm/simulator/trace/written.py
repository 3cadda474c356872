"""Which storages a program writes to, and whether PopTorch sees that it does."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

import torch

from .tape import Operation


def storage_of(tensor: torch.Tensor) -> int:
    """Return what tells a tensor's storage from every other that is alive, an empty one too."""
    return tensor.untyped_storage()._cdata


class Written:
    """The storages that a program writes to, each with the last operation that does.

    Storages are told apart by their address, which another may get once the first is gone: they are
    held.
    """

    def __init__(self) -> None:
        self._held: List[Any] = []  # storages; torch 2.0 types them otherwise
        self._by: Dict[int, Operation] = {}
        self._tracked: Dict[int, Operation] = {}

    def add(self, tensor: torch.Tensor, operation: Operation, tracked: bool) -> None:
        """Note that an operation writes to a tensor, and whether PopTorch sees that it does."""
        storage = storage_of(tensor)
        if storage not in self._by:
            self._held.append(tensor.untyped_storage())
        self._by[storage] = operation
        if tracked:
            self._tracked[storage] = operation

    def by(self, tensor: torch.Tensor) -> Optional[Operation]:
        """Return the last operation that writes to a tensor's storage, if any does."""
        return self._by.get(storage_of(tensor))

    def seen_by_poptorch(self, tensor: torch.Tensor) -> Optional[Operation]:
        """Return the last operation on floats that is in place by its name, if any is.

        PopTorch tracks what an operator's schema says it writes to, through views, and no integers,
        which are constants of its programs (``JitDispatch.cpp:104-118``, ``InplaceOps.cpp:210``).
        A batch norm's schema says nothing: PopART updates the running statistics by itself.
        """
        if not tensor.is_floating_point():
            return None
        return self._tracked.get(storage_of(tensor))
