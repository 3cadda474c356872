"""PopTorch's operations beyond torch's."""

from __future__ import annotations

from typing import Any

import torch

from ._utils import attributes_lists  # noqa: F401 (a name of PopTorch's)
from .alias import names
from .operations.blocks import (
    BeginBlock,
    Block,
    BlockFunction,
    LegacyBeginBlockFn,
    removeBlocks,
)
from .operations.cluster import fps, nearest
from .operations.control_flow import cond, for_loop
from .operations.cpu_op import CPU
from .operations.ctc_decoder import ctc_beam_search_decoder
from .operations.custom_op import custom_op
from .operations.dynamic_slices import dynamic_slice, dynamic_update
from .operations.marks import (
    NameScope,
    identity_loss,
    nop,
    recomputationCheckpoint,
    serializedMatMul,
    set_available_memory,
    set_overlap_for_input,
    set_overlap_for_output,
)
from .operations.multi_conv import MultiConv
from .operations.print_tensor import ipu_print_tensor
from .operations.registered import register

__all__ = [
    "CPU",
    "BeginBlock",
    "Block",
    "BlockFunction",
    "LegacyBeginBlockFn",
    "MultiConv",
    "NameScope",
    "cond",
    "ctc_beam_search_decoder",
    "custom_op",
    "dynamic_slice",
    "dynamic_update",
    "for_loop",
    "fps",
    "identity_loss",
    "ipu_print_tensor",
    "nearest",
    "nop",
    "recomputationCheckpoint",
    "removeBlocks",
    "serializedMatMul",
    "set_available_memory",
    "set_overlap_for_input",
    "set_overlap_for_output",
]

register()

_end_ipu_block = torch.ops.poptorch.end_ipu_block


def _assertIdIsValid(name: str, value: Any, expected_type: type) -> None:
    positive = isinstance(value, int) and value >= 0
    assert isinstance(value, expected_type) or positive, (
        f"{name} must be either a positive integer or a {expected_type.__name__}"
    )


__getattr__ = names.getter(__name__)
