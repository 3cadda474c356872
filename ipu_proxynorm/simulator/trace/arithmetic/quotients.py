"""Quotients of integers as the device has them: cut off, whatever rounding is asked for."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import torch

from ipu_proxynorm.nested import tensors_in

from ..handlers.facts import ProgramFacts


def concerns(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], facts: ProgramFacts
) -> bool:
    """Tell whether an operator rounds a quotient of integers down, and the device towards zero.

    PopTorch's handler does not look at ``rounding_mode`` (``AtenHandlers.gen.cpp:147``), and Poplar
    divides integers as C++ does (poplibs ``elemwiseBinaryOps.hpp:285``): -7 by 2 is -3. Quotients
    of constants are torch's.
    """
    if function is not torch.ops.aten.div.Tensor_mode or kwargs.get("rounding_mode") != "floor":
        return False
    tensors = tensors_in(list(args))
    return not any(tensor.is_floating_point() for tensor in tensors) and not all(
        facts.is_constant(tensor) for tensor in tensors
    )
