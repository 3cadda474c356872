"""Where a norm may leave plain operators: the switch between graph-friendly and fast execution.

On an IPU, in an exported graph and under a tracer, a norm must be plain aten operators: a custom
``autograd.Function`` would be refused or would hide what happens. On a CPU or GPU a custom backward
is what makes Proxy Norm cheap. `plain_operators` forces the first; everything else is detected.
"""

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager, nullcontext
from typing import Any, ContextManager, Iterator, Optional

import torch
from torch import Tensor, nn

from ipu_proxynorm.norm.grouping import check_grouping

# What dispatches a tensor that is no more than its values.
_PLAIN = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)


class _State(threading.local):
    forced = 0
    grouping = "contiguous"
    hand_on = True


_state = _State()


@contextmanager
def plain_operators(
    device_grouping: Optional[str] = "contiguous", *, hand_on: bool = True
) -> Iterator[None]:
    """Make every norm in this thread use plain aten operators only, as on an IPU.

    Whoever builds a PopTorch program around a network enters it. Nestable.

    Args:
        device_grouping: how the device's own Group Norm groups channels, ``contiguous`` or
            ``strided``; layers of the other grouping permute their channels. None: as it is
            outside.
        hand_on: whether units may hand the scale of Proxy Norm to who reads them, where a network
            has said who does (see `hand_on_to`).

    """
    previous = _state.grouping, _state.hand_on
    grouping = _state.grouping if device_grouping is None else check_grouping(device_grouping)
    _state.forced += 1
    _state.grouping, _state.hand_on = grouping, hand_on
    try:
        yield
    finally:
        _state.forced -= 1
        _state.grouping, _state.hand_on = previous


def in_program() -> bool:
    """Return whether `plain_operators` is entered: a program is being made."""
    return bool(_state.forced)


def hands_on() -> bool:
    """Return whether units hand on here what their readers can do more cheaply."""
    return in_program() and _state.hand_on


def device_grouping() -> str:
    """Return how the operator ``group_norm`` groups channels here."""
    return _state.grouping


def may_use_custom_backward(*tensors: Tensor) -> bool:
    """Whether tensors are ordinary CPU or CUDA tensors and nothing is recording the operators.

    False inside `plain_operators`, under ``torch.jit.trace``, ONNX export, ``torch.compile``,
    ``torch.func``, forward-mode differentiation and any dispatch or function mode, and for fake,
    meta and other special tensors.
    """
    return not (
        _is_compiling()
        or _state.forced
        or torch.jit.is_tracing()
        or torch.onnx.is_in_onnx_export()
        or _transforming()
        or not all(_is_ordinary(t) for t in tensors)
    )


def own_precision(device: str) -> ContextManager[Any]:
    """Leave the types of operators as they are, also under ``torch.autocast``.

    What autocast would compute in 16 bits are products of matrices within the proxy's moments. It
    leaves the statistics of ``nn.GroupNorm`` alone in the same way.

    Args:
        device: where the operators run, as ``torch.device.type``.

    """
    return torch.autocast(device, enabled=False) if _is_autocast(device) else nullcontext()


def _is_autocast(device: str) -> bool:
    if device not in ("cpu", "cuda"):
        return False
    if hasattr(torch, "get_autocast_dtype"):  # since torch 2.4
        return bool(torch.is_autocast_enabled(device))  # type: ignore[call-arg,unused-ignore]
    return torch.is_autocast_cpu_enabled() if device == "cpu" else torch.is_autocast_enabled()


def _is_compiling() -> bool:
    compiler = getattr(torch, "compiler", None)
    if compiler is not None and hasattr(compiler, "is_compiling"):
        return bool(compiler.is_compiling())
    dynamo = sys.modules.get("torch._dynamo")  # torch 2.0 imports it on first use
    return dynamo is not None and bool(dynamo.is_compiling())


def _transforming() -> bool:
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch.autograd.forward_ad._current_level >= 0
    )


def _is_ordinary(tensor: Tensor) -> bool:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type not in ("cpu", "cuda"):
        return False
    # Not so where one stands for many: gradients under torch.autograd.grad(is_grads_batched=True).
    keys = torch._C._dispatch_keys(tensor)
    return any(keys.has(key) for key in _PLAIN)
