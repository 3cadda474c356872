"""What the compiler would refuse, said with the line of the user's program and a way out."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable, Iterator, List, Optional, Protocol, Sequence

import torch

from .. import poptorch_core
from . import operators
from .origins import Origin
from .tape import Slot

_TORCH = os.path.dirname(torch.__file__) + os.sep


class Recording(Protocol):
    """What there is to know of the program that an operation is to become part of."""

    user_code: bool

    @property
    def function(self) -> Optional[str]:
        """The torch function that the model has called, if it is in one."""

    @property
    def checks_operators(self) -> bool:
        """Tell whether operators are the model's, rather than made of an accepted operation."""

    def slot_of(self, tensor: torch.Tensor) -> Optional[Slot]:
        """Return the tensor's slot, or None if the program does not know it."""

    def where(self) -> Origin:
        """Return where in the user's program the present operation comes from."""


def refuse(message: str, origin: Origin) -> poptorch_core.Error:
    """Return the error for something the compiler cannot accept."""
    error = poptorch_core.createError(message, layer="poptorch_cpp_error")
    error.add_location(origin.location)
    return error


# Where errors go while all that a program is refused for is collected, instead of the first.
_collected: List[List[poptorch_core.Error]] = []


@contextlib.contextmanager
def collecting() -> Iterator[List[poptorch_core.Error]]:
    """Collect what can be passed over meanwhile, each line of the program's once."""
    _collected.append([])
    try:
        yield _collected[-1]
    finally:
        _collected.pop()


def report(error: poptorch_core.Error) -> None:
    """Raise a refusal that does not keep the rest of the program from being traced.

    Raises:
        poptorch.Error: the one given, unless errors are being collected.

    """
    if not _collected:
        raise error
    if all(str(error) != str(other) for other in _collected[-1]):
        _collected[-1].append(error)


def definition(function: Any) -> str:
    """Return where the user's function or method is defined, ``file:line``; "" if it is torch's."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None or code.co_filename.startswith(_TORCH):
        return ""
    return f"{code.co_filename}:{code.co_firstlineno}"


def no_active_block(origin: Origin) -> poptorch_core.Error:
    """Return the error for an operation after the end of a block."""
    return refuse(
        "No active Block, all the ops must belong to a Block: open another one, or let the last go "
        "on with poptorch.Block.start or poptorch.BeginBlock",
        origin,
    )


_HOST_READS = {
    "_local_scalar_dense": ".item(), int(), float(), bool() or if",
    "is_nonzero": "bool() or if",
    "item": ".item()",
}


def host_read(how: str, origin: Origin) -> poptorch_core.Error:
    """Return the error for a look at a tensor's value while the model is being compiled."""
    return refuse(
        f"The model reads a tensor's value on the host ({how}), but it is compiled before it has "
        "values: keep the value in a tensor (torch.where, index_select, poptorch.dynamic_slice, "
        "poptorch.cond), or pass it to the model as a Python number",
        origin,
    )


def move_to_cpu(origin: Origin) -> poptorch_core.Error:
    """Return the error for a tensor of the device taken elsewhere within the model."""
    return refuse(
        'Illegal move to CPU (via `.to("cpu")`) when using the dispatcher. Instead, return this '
        "output as an IPU tensor, or compute on the host with poptorch.CPU",
        origin,
    )


def python_backward(name: str, origin: Origin) -> poptorch_core.Error:
    """Return the error for a ``torch.autograd.Function`` in a model that is trained."""
    return refuse(
        f"The model uses torch.autograd.Function {name.replace('Backward', '')}, whose backward() "
        "would not be called: PopTorch differentiates the operators of forward() itself. Call "
        "these operators directly",
        origin,
    )


# As C++ spells torch's data types.
_DTYPE_NAMES = {
    torch.bool: "Bool",
    torch.uint8: "Byte",
    torch.int8: "Char",
    torch.int16: "Short",
    torch.int32: "Int",
    torch.int64: "Long",
    torch.float16: "Half",
    torch.float32: "Float",
    torch.float64: "Double",
    torch.bfloat16: "BFloat16",
}


def host_tensor(tensor: torch.Tensor, origin: Origin) -> poptorch_core.Error:
    """Return the error for a tensor of the host among the device's."""
    dtype = _DTYPE_NAMES.get(tensor.dtype, str(tensor.dtype))
    return refuse(
        f"Expected an IPU tensor but got tensor(device={tensor.device}, "
        f"shape={list(tensor.shape)}, dtype={dtype}). Register it as a buffer or parameter of the "
        'model, pass it in as an input, or move it explicitly with tensor.to("ipu")',
        origin,
    )


# Operators whose result has a shape that depends on values. ``index`` is one with a mask only.
_VALUES_GIVE_SHAPES = frozenset({
    "_unique2",
    "masked_select",
    "nonzero",
    "nonzero_numpy",
    "unique_consecutive",
    "unique_dim",
})  # fmt: skip


def dynamic_shape(function: Any, origin: Origin) -> poptorch_core.Error:
    """Return the error for a result whose shape depends on values.

    It is torch's own exception as well, the one that PopTorch lets through here.
    """
    from torch._subclasses.fake_tensor import DynamicOutputShapeException

    class DynamicShapeError(poptorch_core.Error, DynamicOutputShapeException):
        pass

    plain = refuse(
        f"The shape of the result of {function} depends on values, but the program's shapes are "
        "fixed when it is compiled: keep all elements and mask them (torch.where, multiplication)",
        origin,
    )
    error = DynamicShapeError(str(plain))  # type: ignore[arg-type]
    error.type, error.message, error.location = plain.type, plain.message, plain.location
    return error


def check(
    function: Any,
    tensors: Sequence[torch.Tensor],
    recorder: Recording,
    is_constant: Callable[[torch.Tensor], bool],
) -> None:
    """Refuse an operation that the device has no means for.

    Args:
        function: the operator.
        tensors: all tensors among its arguments.
        recorder: knows the device's tensors.
        is_constant: tells whether a tensor's values are known when the program is compiled.

    Raises:
        poptorch.Error: names the operation, the line and what to write instead.

    """
    name = function._schema.name.split("::")[-1]
    if name in _HOST_READS:
        raise host_read(_HOST_READS[name], recorder.where())
    for tensor in tensors:
        if recorder.slot_of(tensor) is None:
            raise host_tensor(tensor, recorder.where())
    masks = any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:])
    if name in _VALUES_GIVE_SHAPES or (name == "index" and masks):
        raise dynamic_shape(function, recorder.where())
    if (
        recorder.checks_operators
        and not operators.is_accepted(name, recorder.function)
        and not (operators.is_computed_by_torch(function) and all(map(is_constant, tensors)))
    ):
        report(
            refuse(
                f"Unsupported ops found in compiled model: [{function._schema.name}]. Not all "
                "operations are supported yet by Graphcore's PyTorch compiler: write it with "
                "operators that are, or compute it on the host with poptorch.CPU",
                recorder.where(),
            )
        )


def check_result(result: Any, recorder: Recording) -> None:
    """Refuse tensors without elements, or of a foreign type, that an operation computes.

    Raises:
        poptorch.Error: names the shape.

    """
    if isinstance(result, torch.Tensor):
        if result.numel() == 0 and recorder.user_code:
            raise zero_sized(result, recorder.where())
        if is_unsupported(result.dtype) and recorder.user_code:
            shape = result.shape
            report(unsupported_type(result.dtype, "a result", shape, recorder.where()))
    elif isinstance(result, list):
        for element in result:
            check_result(element, recorder)
    elif isinstance(result, tuple) and result:
        check_result(result[0], recorder)  # further results may be unused placeholders


# What the device has, and what is demoted to it (dispatch_tracer/Tensor.cpp:43).
_TYPES = frozenset(_DTYPE_NAMES) - {torch.bfloat16}


def is_unsupported(dtype: torch.dtype) -> bool:
    """Tell whether the device does not have a type, and no other stands for it."""
    return dtype not in _TYPES


def unsupported_type(
    dtype: torch.dtype, name: str, shape: Sequence[int], origin: Origin
) -> poptorch_core.Error:
    """Return the error for a tensor of a type that the device does not have."""
    instead = "use torch.float16 or torch.float32"
    if dtype.is_complex:
        instead = "give real and imaginary parts as tensors of their own"
    return refuse(
        f"Tensors of type {dtype} are unsupported (Got {name} of shape {list(shape)}): {instead}",
        origin,
    )


def zero_sized(tensor: torch.Tensor, origin: Origin) -> poptorch_core.Error:
    """Return the error for a tensor without elements."""
    return refuse(f"Zero-sized tensors are unsupported (Got shape {list(tensor.shape)})", origin)
