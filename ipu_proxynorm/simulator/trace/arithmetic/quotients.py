"""Quotients of integers as the device has them: cut off, whatever rounding is asked for."""

from __future__ import annotations

from typing import Any, Callable, Mapping, Sequence

import torch

from ipu_proxynorm.nested import tensors_in

from ..handlers.facts import ProgramFacts

_aten = torch.ops.aten


def is_floored(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], facts: ProgramFacts
) -> bool:
    """Tell whether an operator rounds a quotient of integers down, and the device towards zero.

    PopTorch's handler does not look at ``rounding_mode`` (``AtenHandlers.gen.cpp:147``), and Poplar
    divides integers as C++ does (poplibs ``elemwiseBinaryOps.hpp:285``): -7 by 2 is -3. Quotients
    of constants are torch's.
    """
    floors = kwargs.get("rounding_mode") == "floor"
    return function is _aten.div.Tensor_mode and floors and _of_integers(args, facts)


def is_exact(function: Any, args: Sequence[Any], facts: ProgramFacts) -> bool:
    """Tell whether an operator gives the quotient of integers as a float; the device cuts it off.

    By the same handler: 7 by 2 is 3.
    """
    return function in (_aten.div.Tensor, _aten.div.Scalar) and _of_integers(args, facts)


def cut_off(emit: Callable[..., Any], function: Any, args: Sequence[Any]) -> Any:
    """Emit the quotient of integers as a float of what the device has."""
    dividend, divisor = args
    # float64 has every integer of 32 bits, and their quotients on the right side of an integer.
    wide = emit(_aten._to_copy.default, [dividend], {"dtype": torch.float64})
    quotient = emit(_aten.trunc.default, [emit(function, [wide, divisor], {})], {})
    return emit(_aten._to_copy.default, [quotient], {"dtype": torch.float32})


def _of_integers(args: Sequence[Any], facts: ProgramFacts) -> bool:
    tensors = tensors_in(list(args))
    floats = [number for number in args if isinstance(number, float)]
    return (
        not floats
        and not any(tensor.is_floating_point() for tensor in tensors)
        and not all(facts.is_constant(tensor) for tensor in tensors)
    )
