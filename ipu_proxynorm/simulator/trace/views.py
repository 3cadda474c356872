"""``view`` of what has other strides here: the device's tensors have none that matter.

PopTorch infers a view's type on a new tensor of the same sizes (``TypeInferenceHandler.cpp:240``),
so every ``view`` of as many elements is accepted, that of a transposed or split tensor too.
"""

from __future__ import annotations

from typing import Any, List, Mapping, Sequence

import torch

from . import effects, refusals
from .origins import Origin

_aten = torch.ops.aten


class Views:
    """Copies that stand for views which torch does not make."""

    def __init__(self) -> None:
        self._copies: List[torch.Tensor] = []  # kept alive, for the addresses of their memory

    def function(self, function: Any, args: Sequence[Any]) -> Any:
        """Return the operator to record: ``reshape`` for a view that needs other strides."""
        if function is not _aten.view.default or args[0].is_contiguous():
            return function
        laid_out = torch.empty_strided(args[0].shape, args[0].stride(), device="meta")
        try:
            _aten.view.default(laid_out, args[1])
        except RuntimeError:
            return _aten.reshape.default
        return function

    def note(self, function: Any, result: Any) -> None:
        """Remember a copy that is taken for a view."""
        if function is _aten.reshape.default:
            self._copies.append(result)

    def check(
        self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], where: Origin
    ) -> None:
        """Refuse to write to such a copy: what it was taken of would stay as it is.

        Raises:
            poptorch.Error: names the operator.

        """
        if not self._copies:
            return
        written = {_memory(tensor) for tensor in effects.written(function, args, kwargs)}
        if any(_memory(copy) in written for copy in self._copies):
            raise refusals.refuse(
                f"{effects.operator_name(function)} writes to a view of a tensor that is not "
                "contiguous, which is a copy in the simulator: write to the tensor itself, or to "
                "tensor.reshape(...)",
                where,
            )


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
