"""Checks calls of functions and operators against the table."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Dict, Iterable, Mapping, Sequence

import torch

from ipu_proxynorm.nested import tensors_in

from .. import refusals
from ..origins import Origin
from ..tape import Block, Operation, operations_in, slots_in
from .facts import ProgramFacts, RecordedProgram
from .refusal import Call, Refusal
from .table import FUNCTION_ROWS, IN_PLACE_ROWS, OPERATOR_ROWS, SIGNATURES, UNREAD_RESULTS


def check_function(
    function: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], program: RecordedProgram
) -> None:
    """Refuse a call of a torch function that PopTorch takes as one operator and refuses.

    Args:
        function: the function, or method, that the model calls.
        args: its arguments.
        kwargs: likewise.
        program: what the call becomes part of.

    Raises:
        poptorch.Error: names the call, the line, the place in the sources and what to write.

    """
    name = getattr(function, "__name__", "")
    rows = FUNCTION_ROWS.get(name)
    if rows is None or not program.checks_operators:
        return
    tensors = tensors_in((list(args), dict(kwargs)))
    if all(program.slot_of(tensor) is None for tensor in tensors):
        return  # on the host alone
    _check(rows, Call(name, _bound(function, name, args, kwargs), ProgramFacts(program)), program)


def _bound(
    function: Callable, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Dict[str, Any]:
    if inspect.isfunction(function):
        signature = inspect.signature(function)
        if "args" not in signature.parameters:  # torch's switches between functions take anything
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            return dict(bound.arguments)
    return {**dict(zip(SIGNATURES[name].split(), args)), **kwargs}


def check_operator(
    operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any], program: RecordedProgram
) -> None:
    """Refuse a call of an aten operator whose arguments PopTorch's handler refuses.

    Args:
        operator: the operator, an overload.
        args: its arguments.
        kwargs: likewise.
        program: what the call becomes part of.

    Raises:
        poptorch.Error: names the call, the line, the place in the sources and what to write.

    """
    if not program.checks_operators:
        return
    dtype = kwargs.get("dtype")
    if isinstance(dtype, torch.dtype) and refusals.is_unsupported(dtype):
        shape = args[0].shape if args and isinstance(args[0], torch.Tensor) else ()
        refusals.report(refusals.unsupported_type(dtype, "a result", shape, program.where()))
    schema = operator._schema
    name = schema.name.split("::")[-1]
    rows = OPERATOR_ROWS.get(name, [])
    if name.endswith("_") and not name.endswith("__"):
        rows = rows + IN_PLACE_ROWS
    if not rows:
        return
    given = {
        argument.name: args[position]
        if position < len(args)
        else kwargs.get(argument.name, argument.default_value)
        for position, argument in enumerate(schema.arguments)
    }
    _check(rows, Call(name, given, ProgramFacts(program)), program)


def _check(rows: Iterable[Refusal], call: Call, program: RecordedProgram) -> None:
    for row in rows:
        if row.when(call):
            refusals.report(refusals.refuse(row.message, program.where()))


def check_unread(block: Block) -> None:
    """Refuse a program that uses results which PopTorch's handlers do not make.

    Args:
        block: the program, without operators that nothing needs.

    Raises:
        poptorch.Error: names the operator and the line.

    """
    missing: Dict[Any, Operation] = {}
    for operation in operations_in(block):
        if operation.origin.backward or getattr(operation.function, "is_watch", False):
            continue  # the simulator's own checks look at every result
        for slot in slots_in((operation.args, operation.kwargs)):
            if slot in missing:
                _refuse_unread(missing[slot].name, missing[slot].origin)
        if operation.name in UNREAD_RESULTS and isinstance(operation.outputs, (list, tuple)):
            for index in UNREAD_RESULTS[operation.name]:
                if index < len(operation.outputs):
                    missing.update(dict.fromkeys(slots_in(operation.outputs[index]), operation))
    for slot in block.results:
        if slot in missing:
            _refuse_unread(missing[slot].name, missing[slot].origin)


def _refuse_unread(name: str, origin: Origin) -> None:
    refusals.report(
        refusals.refuse(
            f"aten::{name}: only its first result can be used with PopTorch 3.4 "
            "(PopartCanonicalization.cpp:223): compute what else is needed from the input",
            origin,
        )
    )
