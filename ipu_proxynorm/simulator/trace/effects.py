"""What an operator writes to: what its schema announces, and what its kernel writes besides."""

from __future__ import annotations

from typing import Any, Callable, List, Mapping, Optional, Sequence

import torch

from ipu_proxynorm.nested import tensors_in

# torch's kernels write to these arguments where `training` is true, and never else, whatever the
# schema says: torch 2.0's says nothing of them, newer ones announce some.
_WRITTEN_IN_TRAINING = {
    "native_batch_norm": ("running_mean", "running_var"),
    "_native_batch_norm_legit": ("running_mean", "running_var"),
    "rrelu_with_noise": ("noise",),
    "rrelu_with_noise_": ("noise",),
}
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit")


def operator_name(function: Callable) -> str:
    """Return an operator's name without namespace and overload."""
    schema = getattr(function, "_schema", None)
    return schema.name.split("::")[-1] if schema is not None else function.__name__


def written(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> List[torch.Tensor]:
    """Return every tensor that a call of an operator writes to; none for other functions."""
    return tensors_in(written_arguments(function, args, kwargs))


def written_arguments(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> List[Any]:
    """Return the arguments that a call of an operator writes to, whatever stands for tensors."""
    schema = getattr(function, "_schema", None)
    if schema is None:
        return []
    given = {
        argument.name: args[position] if position < len(args) else kwargs.get(argument.name)
        for position, argument in enumerate(schema.arguments)
    }
    in_training = _WRITTEN_IN_TRAINING.get(operator_name(function), ())
    found: List[Any] = []
    for argument in schema.arguments:
        if argument.name in in_training:
            writes = bool(given["training"])
        else:
            writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes:
            found.append(given[argument.name])
    return found


def updated_statistics(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> List[torch.Tensor]:
    """Return the running statistics that a batch norm updates."""
    return written(function, args, kwargs) if operator_name(function) in _BATCH_NORMS else []


def without_write(function: Any) -> Optional[Any]:
    """Return the operator that makes a new tensor of what one in place, or with ``out``, writes.

    It takes the same arguments, which the overload's name does not say: of ``pow_.Scalar`` it is
    ``pow.Tensor_Scalar``. None if there is no such operator.
    """
    name = operator_name(function)
    packet = getattr(torch.ops.aten, name[:-1] if name.endswith("_") else name, None)
    if packet is None:
        return None
    taken = [a for a in function._schema.arguments if name.endswith("_") or not _is_written(a)]
    overload = function._schema.overload_name or "default"
    names = [overload, overload[: -len("out")].rstrip("_") if overload.endswith("out") else ""]
    for candidate in dict.fromkeys((*names, *packet.overloads())):
        found = getattr(packet, candidate or "default", None)
        if found is not None and _takes(found._schema.arguments, taken):
            return found
    return None


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _takes(arguments: Sequence[Any], given: Sequence[Any]) -> bool:
    """Tell whether an operator takes arguments as they are given, and writes to none of them."""
    if len(arguments) < len(given) or any(map(_is_written, arguments)):
        return False
    if not all(argument.has_default_value() for argument in arguments[len(given) :]):
        return False
    return all(
        str(one.type) == str(other.type)
        and one.has_default_value() >= other.has_default_value()  # a call may leave it out
        for one, other in zip(arguments, given)
    )
