"""Custom operators that Graphcore's public programs compile, as Python functions.

Each says where its C++ is. ``Ctc`` needs none: it is PopART's own (``willow/src/op/ctc.cpp``),
which programs reach through ``custom_op``.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .._impl import createPoptorchError
from ..trace.recorder import active

_REDUCTIONS = {"Sum": "sum", "Mean": "mean", "NoReduction": "none"}
_FLOAT16_BITS, _FLOAT16_MAX_EXPONENT = 10, 14


class _WithGradientOf(torch.autograd.Function):
    """Returns one tensor, and gives its gradient to another."""

    is_recorded = True

    @staticmethod
    def forward(ctx: Any, forward: Tensor, proxy: Tensor) -> Tensor:  # type: ignore[override]
        """Return a copy of the first."""
        return forward.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[None, Tensor]:  # type: ignore[override]
        """Pass the gradient to the second."""
        return None, gradient


def autograd_proxy(forward: Tensor, proxy: Tensor) -> Tensor:
    """Return ``forward`` with the gradient of ``proxy`` (add-ons: ``autograd_proxy.cpp``)."""
    return _WithGradientOf.apply(forward, proxy)


def remapped(tensor: Tensor, **_: Any) -> Tensor:
    """Return a copy: only the mapping to tiles differs (examples: ``remap_tensor_ce.cpp``)."""
    return tensor.clone()


def _distance(order: int) -> Callable[..., Tensor]:
    def distance(first: Tensor, second: Tensor, **_: Any) -> Tensor:
        """Return all distances of (M, K) to (N, K): (M, N) (``distance_matrix_codelet.cpp``)."""
        apart = (first[:, None] - second[None]).float()  # rounded in their own type
        if order == 1:
            return apart.abs().sum(-1).to(first.dtype)
        squares = (apart * apart).sum(-1)
        is_same = squares == 0  # where the gradient is 0
        far = squares.masked_fill(is_same, 1.0).sqrt()
        return far.masked_fill(is_same, 0.0).to(first.dtype)

    return distance


def static_sparse_matmul(
    dense: Tensor,
    *,
    mode: str,
    n_rows: int,
    n_cols: int,
    block_size: int,
    rows: Sequence[int],
    cols: Sequence[int],
    values: Sequence[float],
) -> Tensor:
    """Multiply by a constant matrix of blocks (add-ons: ``static_spmm.cpp``). No gradient.

    Args:
        dense: (``n_cols``, N) for the mode ``sparse_dense``, otherwise (N, ``n_rows``).
        mode: ``sparse_dense`` or ``dense_sparse``.
        n_rows: the matrix's rows.
        n_cols: its columns.
        block_size: of its square blocks.
        rows: the first row of each block.
        cols: the first column of each block.
        values: of the blocks, one after the other.

    """
    blocks = torch.tensor(values).view(-1, block_size, block_size)
    matrix = torch.zeros(n_rows, n_cols)
    for row, column, block in zip(rows, cols, blocks):
        matrix[row : row + block_size, column : column + block_size] += block
    constant = _constant(matrix.to(dense.dtype))
    dense = dense.detach()
    return constant @ dense if mode == "sparse_dense" else dense @ constant


def _constant(tensor: Tensor) -> Tensor:
    recorder = active()
    return tensor if recorder is None else recorder.constant(tensor)


def flash_attention(qkv: Tensor, **_: Any) -> Tensor:
    """Return causal attention of (3, N, L, D): (N, L, D) (``flash_attention_qkv_packed.cpp``)."""
    query, key, value = qkv.unbind(0)
    length = qkv.shape[2]
    mask = _constant(torch.full((length, length), -10000.0).triu(1).to(qkv.dtype))
    return torch.softmax(query @ key.transpose(1, 2) + mask, -1) @ value


def ctc(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Tensor,
    target_lengths: Tensor,
    *,
    reduction: str,
    blank: int = 0,
    zeroInfinity: int = 0,
    **_: Any,
) -> List[Tensor]:
    """Return PopART's CTC loss, and zeros where it has the gradient that it keeps for itself.

    Args:
        log_probs: (T, N, C).
        targets: (N, S).
        input_lengths: (N).
        target_lengths: (N).
        reduction: ``Sum``, ``Mean`` or ``NoReduction``.
        blank: the class of the blank.
        zeroInfinity: whether losses that are infinite count as 0.

    """
    if reduction not in _REDUCTIONS:
        known = ", ".join(_REDUCTIONS)
        raise createPoptorchError(f"Ctc: reduction={reduction}: expected one of {known}.")
    how = _REDUCTIONS[reduction]
    lengths = (input_lengths, target_lengths)
    loss = F.ctc_loss(log_probs, targets, *lengths, blank, how, bool(zeroInfinity))
    return [loss, torch.zeros_like(log_probs)]


def quantised(tensor: Tensor, exponent_bits: int, mantissa_bits: int, rounding: str) -> Tensor:
    """Round to few bits, through float16 (add-ons: ``simulated_quant_codelet.cpp``).

    Args:
        tensor: float16 or float32, which the result has too.
        exponent_bits: of the smaller type, 5 at most.
        mantissa_bits: 10 at most.
        rounding: ``nearest`` (ties towards 0) or ``stochastic``.

    """
    highest = 2 ** (exponent_bits - 1) - 1
    largest = min(2.0**highest * (2 - 2.0**-mantissa_bits), torch.finfo(torch.float16).max)
    scale = max(1.0, 2.0 ** (_FLOAT16_MAX_EXPONENT - highest))
    mask = 2 ** (_FLOAT16_BITS - mantissa_bits) - 1
    scaled = (tensor.half().float().clamp(-largest, largest) / scale).half()
    bits = scaled.view(torch.int16).to(torch.int32)
    offset = mask // 2
    if rounding == "stochastic":
        offset = torch.randint(0, mask + 1, bits.shape, dtype=torch.int32, device=bits.device)
    bits = (bits + offset) & ~mask
    return (bits.to(torch.int16).view(torch.float16).float() * scale).half().to(tensor.dtype)


def _rounder(exponent_bits: int, mantissa_bits: int, rounding: str) -> Callable[[Tensor], Tensor]:
    def simulated_quant(tensor: Tensor) -> Tensor:
        return quantised(tensor, exponent_bits, mantissa_bits, rounding)

    simulated_quant.is_random = rounding == "stochastic"  # type: ignore[attr-defined]
    simulated_quant.runs_anywhere = True  # type: ignore[attr-defined]
    return simulated_quant


class _Quantised(torch.autograd.Function):
    """Rounds what goes forward, what comes back, or both."""

    is_recorded = True

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, tensor: Tensor, forward: Optional[Callable], backward: Optional[Callable]
    ) -> Tensor:
        """Round, or copy."""
        ctx.rounder = backward
        return _emitted(forward, tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tuple[Tensor, None, None]:  # type: ignore[override]
        """Round, or pass the gradient on."""
        return _emitted(ctx.rounder, gradient), None, None


def _emitted(function: Optional[Callable], tensor: Tensor) -> Tensor:
    if function is None:
        return tensor.clone()
    recorder = active()
    assert recorder is not None
    return recorder.emit(function, [recorder.constant(tensor)], {})


def simulated_quant(
    tensor: Tensor,
    *,
    exponent_bits: int,
    mantissa_bits: int,
    rounding: str,
    fwd: bool,
    bwd: str,
    **_: Any,
) -> Tensor:
    """Round values, gradients or both (add-ons: ``simulated_quant.cpp``).

    Args:
        tensor: what is rounded.
        exponent_bits: of the type.
        mantissa_bits: of the type.
        rounding: ``nearest`` or ``stochastic``.
        fwd: round the values.
        bwd: ``quantise`` rounds the gradient, ``ste`` passes it on, ``stop`` ends it.

    """
    rounder = _rounder(exponent_bits, mantissa_bits, rounding)
    tensor = tensor.detach() if bwd == "stop" else tensor
    return _Quantised.apply(
        tensor, rounder if fwd else None, rounder if bwd == "quantise" else None
    )


#: By domain and name.
OPERATORS: Dict[Tuple[str, str], Callable] = {
    ("ai.graphcore", "AutogradProxy"): autograd_proxy,
    ("ai.graphcore", "CopyTensor"): remapped,
    ("ai.graphcore", "Ctc"): ctc,
    ("ai.graphcore", "FlashAttentionQKVPacked"): flash_attention,
    ("ai.graphcore", "L1Distance"): _distance(1),
    ("ai.graphcore", "L2Distance"): _distance(2),
    ("ai.graphcore", "RemapCE"): remapped,
    ("ai.graphcore", "SimulatedQuant"): simulated_quant,
    ("ai.graphcore", "StaticSparseMatmul"): static_sparse_matmul,
}
