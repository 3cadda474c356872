"""Rows of the table: arithmetic, views and other operators of plain tensors."""

from __future__ import annotations

from typing import Any

import torch

from .refusal import Call, Refusal, dtype_of

_BITWISE = "popart_canonicalization/BitwiseOps.cpp"
_BITWISE_OPERATORS = (
    "bitwise_and bitwise_and_ bitwise_or bitwise_or_ bitwise_xor bitwise_xor_ "
    "__and__ __or__ __xor__ __iand__ __ior__ __ixor__"
)
_RANDOM_OPERATORS = (
    "bernoulli bernoulli_ exponential_ normal normal_ normal_functional rand randn randint "
    "randperm random_ uniform uniform_"
)


def _operand_types(call: Call) -> set:
    return {dtype_of(value) for value in call.arguments.values()} - {None}


def _mixes_bool(call: Call) -> bool:
    types = _operand_types(call)
    return torch.bool in types and len(types) > 1


def _both_bool(first: Any, second: Any) -> bool:
    return dtype_of(first) == dtype_of(second) == torch.bool


def _matrix_norm(call: Call) -> bool:
    """Tell whether a norm is of a matrix, by its singular values."""
    if call.name == "norm":
        return call["p"] == "nuc"
    order, dim = call["ord"], call["dim"]
    if order is None or isinstance(order, str):
        return order == "nuc"
    matrix = call.name == "linalg_matrix_norm" or (
        call.input.dim() == 2 if dim is None else isinstance(dim, (list, tuple)) and len(dim) == 2
    )
    return matrix and abs(order) == 2


ROWS = [
    Refusal(
        "add-bools-alpha",
        "Adding two tensors of bool with alpha",
        lambda call: call["alpha"] != 1 and _both_bool(call["self"], call["other"]),
        "popart_canonicalization/ArithmeticOps.cpp:24",
        "use torch.logical_or, or convert to integers first",
        operators="add add_",
    ),
    Refusal(
        "cross-broadcast",
        "A cross product of tensors of different shapes",
        lambda call: call.tensors[0].shape != call.tensors[1].shape,
        "popart_canonicalization/ArithmeticOps.cpp:174",
        "expand both to one shape",
        operators="cross linalg_cross",
    ),
    Refusal(
        "variance-correction",
        "A variance or standard deviation without unbiased or correction",
        lambda call: call["correction"] is None,
        "popart_canonicalization/PopartCanonicalizationUtils.cpp:260",
        "give correction=0 or 1, or unbiased",
        operators="var std var_mean std_mean",
    ),
    Refusal(
        "bitwise-bytes",
        "A bitwise operation on 8-bit integers",
        lambda call: _operand_types(call) in ({torch.uint8}, {torch.int8}),
        f"{_BITWISE}:19",
        "convert to torch.int32 first",
        operators=f"{_BITWISE_OPERATORS} bitwise_not bitwise_not_",
    ),
    Refusal(
        "bitwise-mixed",
        "A bitwise operation on bools and integers",
        _mixes_bool,
        f"{_BITWISE}:34",
        "convert both to one type first",
        operators=_BITWISE_OPERATORS,
    ),
    Refusal(
        "as-strided",
        "as_strided",
        lambda call: True,
        "popart_canonicalization/ReshapeOps.cpp:141",
        "use slices, view, permute, expand or unfold",
        functions="as_strided as_strided_",
    ),
    Refusal(
        "triu",
        "triu (torch.triu is only supported within constant expressions)",
        lambda call: not call.facts.is_constant(call.input),
        "popart_canonicalization/TensorOps.cpp:490",
        "multiply by a constant mask, or fill it in with torch.where",
        operators="triu triu_",
    ),
    Refusal(
        "step-in-place",
        "In-place modification of slices with step size other than 1",
        lambda call: call.facts.is_strided_slice(call.input),
        "PopartCanonicalization.cpp:126",
        "compute a new tensor with torch.where and a mask, or index_put_ with the positions",
        operators="*in-place*",
    ),
    Refusal(
        "argsort-stable",
        "argsort with stable given",
        lambda call: call["stable"] is not None,
        "dispatch_tracer/TypeInferenceHandler.cpp:33",
        "use torch.sort(stable=True), or leave stable out",
        functions="argsort",
    ),
    Refusal(
        "sort-scalar",
        "Sorting a 0-d tensor",
        lambda call: call.input.dim() == 0,
        "popart/op/basesort.cpp:28",
        "give it a dimension: reshape(1)",
        functions="argsort",
        operators="sort topk",
    ),
    Refusal(
        "argmax-scalar",
        "argmax or argmin of a 0-d tensor along a dimension",
        lambda call: call["dim"] is not None and call.input.dim() == 0,
        "popart/op/argextrema.cpp:50",
        "leave dim out",
        operators="argmax argmin",
    ),
    Refusal(
        "matrix-norm",
        "A matrix norm by singular values (of order 2, -2 or 'nuc')",
        _matrix_norm,
        "dispatch_tracer/RegisterAtenOverloads.cpp:590, 602",
        "use the Frobenius norm, or compute it on the host",
        functions="linalg_matrix_norm linalg_norm norm",
    ),
    Refusal(
        "generator",
        "A random operation with a generator of its own",
        lambda call: call["generator"] is not None,
        "dispatch_tracer/CommonHelperFunctions.cpp:127",
        "leave generator out: Options.randomSeed seeds the device",
        operators=_RANDOM_OPERATORS,
    ),
]
