"""What the compiler would refuse, said with the line of the user's program and a way out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Sequence

import torch

from . import poptorch_core
from ._tape import Origin

if TYPE_CHECKING:
    from ._recorder import Recorder


def refuse(message: str, origin: Origin) -> poptorch_core.Error:
    """Return the error for something the compiler cannot accept."""
    location = f"{origin.file}:{origin.line}" if origin.file else ""
    text = f"{message} ({location})" if location else message
    return poptorch_core.createError(text, layer="poptorch_cpp_error", location=location)


def no_active_block(origin: Origin) -> poptorch_core.Error:
    """Return the error for an operation after the end of a block."""
    return refuse("No active Block, all the ops must belong to a Block", origin)


_HOST_READS = {
    "_local_scalar_dense": ".item(), int(), float(), bool() or if",
    "equal": "torch.equal",
    "is_nonzero": "bool() or if",
    "item": ".item()",
}


def host_read(how: str, origin: Origin) -> poptorch_core.Error:
    """Return the error for a look at a tensor's value while the model is being compiled."""
    return refuse(
        f"The model reads a tensor's value on the host ({how}), but it is compiled before it has "
        "values: keep the value in a tensor (torch.where, poptorch.cond), or pass it to the model "
        "as a Python number",
        origin,
    )


def check(function: Any, args: Sequence[Any], recorder: Recorder) -> None:
    """Refuse an operation that the device has no means for.

    Raises:
        poptorch.Error: names the operation, the line and what to write instead.

    """
    name = function._schema.name.split("::")[-1]
    if name in _HOST_READS:
        raise host_read(_HOST_READS[name], recorder.where())


def check_result(result: Any, recorder: Recorder) -> None:
    """Refuse tensors without elements that an operation computes.

    Raises:
        poptorch.Error: names the shape.

    """
    if isinstance(result, torch.Tensor):
        if result.numel() == 0 and recorder.user_code:
            raise zero_sized(result, recorder.where())
    elif isinstance(result, list):
        for element in result:
            check_result(element, recorder)
    elif isinstance(result, tuple) and result:
        check_result(result[0], recorder)  # further results may be unused placeholders


def zero_sized(tensor: torch.Tensor, origin: Origin) -> poptorch_core.Error:
    """Return the error for a tensor without elements."""
    return refuse(f"Zero-sized tensors are unsupported (Got shape {list(tensor.shape)})", origin)
