"""What each operator of ``torch.ops.poptorch`` does: the same as the Python function that calls it.

Names and schemas are those of PopTorch's ``dispatch_tracer/RegisterAtenOverloads.cpp:884-957``, the
meaning of the arguments that of ``python/ops.py``, which calls them.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import _impl, enums
from .._utils import accessAttributes
from ..trace import registered, tracing
from . import cluster, control_flow, ctc_decoder, custom_op, dynamic_slices, marks
from .multi_conv import MultiConv
from .print_tensor import ipu_print_tensor

SCHEMAS: Dict[str, str] = {
    "begin_ipu_block": "(int stage_id, int phase_id, int ipu_id) -> ()",
    "end_ipu_block": "() -> ()",
    "start_for_loop": "(Tensor[] inputs) -> ()",
    "end_for_loop": "(Tensor[] outputs, Tensor[] inputs, int trip_count) -> Tensor[]",
    "start_if_block": "(Tensor condition) -> ()",
    "start_else_block": "(Tensor[] outputs_true) -> ()",
    "end_if_block": "(Tensor[] outputs, Tensor condition) -> Tensor[]",
    "optimizer_group": "(int group, Tensor[] inputs) -> ()",
    "begin_multi_conv": "() -> ()",
    "end_multi_conv": (
        "(float[]? available_memory_proportions, int[]? partials_types, int? plan_type, "
        "int? per_conv_reserved_tiles, float? cycle_back_off, int[]? enableConvDithering) -> ()"
    ),
    "push_name_scope": "(str name) -> ()",
    "pop_name_scope": "() -> ()",
    "set_attribute": "(str attribute, str key, str value) -> ()",
    "clear_attribute": "(str attribute, str key) -> ()",
    "ipu_print_tensor": (
        "(Tensor self, str title, int print_gradient, int summarize_threshold, int edge_items, "
        "int max_line_width, int digits, int float_format, str separator, str open_bracket, "
        "str close_bracket) -> Tensor"
    ),
    "nop": "(Tensor self) -> Tensor",
    "set_matmul_serialization": (
        "(Tensor matmul, str mode, int factor, bool keep_precision) -> Tensor"
    ),
    "set_overlap_for_input": "(Tensor t, str mode) -> Tensor",
    "set_overlap_for_output": "(Tensor t, str mode) -> Tensor",
    "recomputation_checkpoint": "(Tensor self) -> Tensor",
    "set_available_memory": "(Tensor t, float mem) -> Tensor",
    "custom_operation": (
        "(Tensor[] inputs, str name, str domain, int domain_version, int num_outputs, "
        "Tensor[] outputs, str attributes) -> Tensor[]"
    ),
    "ctc_beam_search_decoder": (
        "(Tensor probs, Tensor lengths, int blank, int beam_width, int top_paths)"
        " -> (Tensor, Tensor, Tensor)"
    ),
    "dynamic_slice": "(Tensor self, int dim, Tensor start, int size, int step) -> Tensor",
    "dynamic_update": "(Tensor self, Tensor src, int dim, Tensor start, int size) -> Tensor",
    "identity_loss": "(Tensor x, int reduction) -> Tensor",
    "internal_cast": "(Tensor self, str dtype) -> Tensor",
    "end_cpu_op": "(Tensor[] output) -> Tensor[]",
    "call_cpu_op": "(Tensor[] inputs, str name) -> ()",
    "fps": "(Tensor src, int[] ptr, float ratio, bool random_start) -> Tensor",
    "nearest": "(Tensor x, Tensor y, Tensor batch_x, Tensor batch_y) -> Tensor",
    "nearest_batch_list": "(Tensor x, Tensor y, int[] batch_x, int[] batch_y) -> Tensor",
}

_REDUCTIONS = ("sum", "mean", "none")  # python/ops.py:1039-1048
_FLOAT_FORMATS = ("auto", "fixed", "scientific", "none")  # python/ops.py:148
_CASTS = {
    "FLOAT": torch.float32,
    "FLOAT32": torch.float32,
    "FLOAT16": torch.float16,
    "INT32": torch.int32,
    "INT64": torch.int32,
    "BOOL": torch.bool,
}


def _nothing(*_: Any) -> None:
    """Names and attributes of operators, and the optimiser's groups, change no value."""


def _begin_ipu_block(stage_id: int, phase_id: int, ipu_id: int) -> None:
    trace = tracing.current()
    if trace is not None:
        trace.begin_block(f"stage {stage_id}", (stage_id, phase_id, ipu_id))


def _end_ipu_block() -> None:
    trace = tracing.current()
    if trace is not None:
        trace.end_block()


def _begin_multi_conv() -> None:
    MultiConv().__enter__()


def _end_multi_conv(
    proportions: Optional[List[float]],
    partials: Optional[List[int]],
    plan_type: Optional[int],
    reserved_tiles: Optional[int],
    back_off: Optional[float],
    dithering: Optional[List[int]],
) -> None:
    convolutions = MultiConv()
    convolutions._available_memory_proportions = proportions
    convolutions._partials_types = partials
    if dithering is not None:
        convolutions._enable_conv_ditherings = [bool(value) for value in dithering]
    convolutions.__exit__(None)


def _print_tensor(
    tensor: Tensor,
    title: str,
    print_gradient: int,
    summarize_threshold: int,
    edge_items: int,
    max_line_width: int,
    digits: int,
    float_format: int,
    separator: str,
    open_bracket: str,
    close_bracket: str,
) -> Tensor:
    if not 0 <= float_format < len(_FLOAT_FORMATS):
        raise _impl.createPoptorchError(
            f"ipu_print_tensor: float_format is {float_format}, but must be from 0 to 3 "
            f"({', '.join(_FLOAT_FORMATS)})."
        )
    return ipu_print_tensor(
        tensor,
        title,
        bool(print_gradient),
        summarize_threshold,
        edge_items,
        max_line_width,
        digits,
        _FLOAT_FORMATS[float_format],
        separator,
        open_bracket,
        close_bracket,
    )


def _serialized(matmul: Tensor, mode: str, factor: int, keep_precision: bool) -> Tensor:
    enums.MatMulSerializationMode(mode)
    return marks.nop(matmul)


def _overlapped(of: Callable[[Any, enums.OverlapMode], Tensor]) -> Callable[[Tensor, str], Tensor]:
    return lambda tensor, mode: of(tensor, enums.OverlapMode(mode))


def _custom_operation(
    inputs: List[Tensor],
    name: str,
    domain: str,
    domain_version: int,
    num_outputs: int,
    outputs: List[Tensor],
    attributes: str,
) -> List[Tensor]:
    known = accessAttributes(attributes)
    return custom_op.custom_op(inputs, name, domain, domain_version, outputs, known)


def _ctc_beam_search_decoder(
    probs: Tensor, lengths: Tensor, blank: int, beam_width: int, top_paths: int
) -> Tuple[Tensor, ...]:
    return tuple(ctc_decoder.ctc_beam_search_decoder(probs, lengths, blank, beam_width, top_paths))


def _identity_loss(x: Tensor, reduction: int) -> Tensor:
    if not 0 <= reduction < len(_REDUCTIONS):
        raise _impl.createPoptorchError("reduction must be sum (0), mean (1) or none (2)")
    return marks.identity_loss(x, _REDUCTIONS[reduction])


def _internal_cast(tensor: Tensor, dtype: str) -> Tensor:
    if dtype not in _CASTS:
        raise _impl.createPoptorchError(
            f"internal_cast: {dtype!r} is no type of the device; expected one of "
            f"{', '.join(_CASTS)}."
        )
    return tensor.to(_CASTS[dtype])


def _cpu_op(*_: Any) -> NoReturn:
    raise _impl.createPoptorchError(
        "torch.ops.poptorch.call_cpu_op and end_cpu_op bracket what poptorch.CPU runs on the host, "
        "with a callback that it registers: call poptorch.CPU(function, ID) instead."
    )


def _nearest_batch_list(
    x: Tensor, y: Tensor, batch_x: Sequence[int], batch_y: Sequence[int]
) -> Tensor:
    return cluster.nearest(x, y, list(batch_x), list(batch_y))


FUNCTIONS: Dict[str, Callable] = {
    "begin_ipu_block": _begin_ipu_block,
    "end_ipu_block": _end_ipu_block,
    "start_for_loop": control_flow.start_for_loop,
    "end_for_loop": control_flow.end_for_loop,
    "start_if_block": control_flow.start_if_block,
    "start_else_block": control_flow.start_else_block,
    "end_if_block": control_flow.end_if_block,
    "optimizer_group": _nothing,
    "begin_multi_conv": _begin_multi_conv,
    "end_multi_conv": _end_multi_conv,
    "push_name_scope": _nothing,
    "pop_name_scope": _nothing,
    "set_attribute": _nothing,
    "clear_attribute": _nothing,
    "ipu_print_tensor": _print_tensor,
    "nop": marks.nop,
    "set_matmul_serialization": _serialized,
    "set_overlap_for_input": _overlapped(marks.set_overlap_for_input),
    "set_overlap_for_output": _overlapped(marks.set_overlap_for_output),
    "recomputation_checkpoint": marks.recomputationCheckpoint,
    "set_available_memory": marks.set_available_memory,
    "custom_operation": _custom_operation,
    "ctc_beam_search_decoder": _ctc_beam_search_decoder,
    "dynamic_slice": dynamic_slices.dynamic_slice,
    "dynamic_update": dynamic_slices.dynamic_update,
    "identity_loss": _identity_loss,
    "internal_cast": _internal_cast,
    "end_cpu_op": _cpu_op,
    "call_cpu_op": _cpu_op,
    "fps": lambda src, ptr, ratio, start: cluster.fps(src, list(ptr), ratio, start),
    "nearest": cluster.nearest,
    "nearest_batch_list": _nearest_batch_list,
}


def register() -> None:
    """Let programs call the operators as ``torch.ops.poptorch.<name>``."""
    registered.register(SCHEMAS, FUNCTIONS)
