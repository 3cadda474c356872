"""Rows of the table: what the device computes in another type than torch says it has.

PopTorch takes a result's type from torch (``JitDispatch.cpp:384``) and its values from an operator
of PopART, which has its operands' type. Nothing compares the two (``LowerToPopart.cpp:682``): what
follows is refused by PopART, or wrong.
"""

from __future__ import annotations

import torch

from .refusal import Call, Refusal, dtype_of

_HANDLERS = "popart_canonicalization/AtenHandlers.gen.cpp"
_VERTICES = "poplibs lib/popops/codelets/elemwiseUnaryCodelets.cpp"
#: Bools are made integers, integers of 64 bits those of 32 (``ReduceOps.cpp:34``).
_COUNTED_AS = {torch.bool: torch.int32, torch.int64: torch.int32, torch.float64: torch.float32}
_OF_FLOATS = (
    "acos acosh asin asinh atan atanh atan2 cos cosh erf erfc exp expm1 log log10 log1p log2 "
    "rsqrt sigmoid sin sinh sqrt tan tanh"
)


def _computed(call: Call) -> bool:
    """Tell whether a call is not made of constants, which torch computes on the host."""
    return not all(call.facts.is_constant(tensor) for tensor in call.tensors)


def _of_integers(call: Call) -> bool:
    types = [dtype_of(call[name]) for name in ("self", "other")]
    return not any(dtype is not None and dtype.is_floating_point for dtype in types) and _computed(
        call
    )


def _is_rounded_float(call: Call) -> bool:
    return call["rounding_mode"] is not None and not _of_integers(call) and _computed(call)


def _changes_type(call: Call) -> bool:
    asked, given = call["dtype"], call.input.dtype
    return (
        asked is not None
        and _COUNTED_AS.get(asked, asked) != _COUNTED_AS.get(given, given)
        and _computed(call)
    )


ROWS = [
    Refusal(
        "rounded-quotient",
        "A rounding_mode in the division of floats",
        _is_rounded_float,
        f"{_HANDLERS}:147",
        "use torch.floor(a / b) or torch.trunc(a / b)",
        operators="div div_",
        answer="PopTorch 3.4 does not look at it, and does not round",
    ),
    Refusal(
        "integer-function",
        "A function of floats with an integer argument",
        _of_integers,
        f"{_HANDLERS}:47 and on; {_VERTICES}:1263 and on",
        "convert first: x.float()",
        operators=_OF_FLOATS,
        answer="PopTorch 3.4 does not convert it, and Poplar has these of floats alone, but for an "
        "integer's square root as an integer",
    ),
    Refusal(
        "integer-floor",
        "Rounding integers",
        _of_integers,
        f"popart_canonicalization/ArithmeticOps.cpp:68; {_VERTICES}:1276",
        "leave it out, or divide with torch.div(a, b, rounding_mode='trunc')",
        operators="ceil ceil_ floor floor_ floor_divide floor_divide_ round round_",
        answer="Poplar rounds floats alone",
    ),
    Refusal(
        "reduced-type",
        "A dtype in sum, mean or prod",
        _changes_type,
        "popart_canonicalization/ReduceOps.cpp:73",
        "convert before: x.to(dtype).sum()",
        operators="mean prod sum",
        answer="PopTorch 3.4 does not look at it, and reduces in the input's type",
    ),
]
