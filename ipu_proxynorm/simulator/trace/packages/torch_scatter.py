"""The package torch_scatter's compiled operators, of which PopTorch has handlers of its own.

Sums and means of that package are torch's operators already. Results are those of PopTorch's
handlers (``PyGTorchScatterOps.cpp``): where several elements are largest, the first is named.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple

import torch

from ... import _impl


def _index_like(src: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the index expanded to the shape of ``src``: of one dimension, it is along ``dim``."""
    if index.dim() == 1:
        index = index.view([-1 if d == dim else 1 for d in range(src.dim())])
    for _ in range(src.dim() - index.dim()):
        index = index.unsqueeze(-1)
    return index.expand(src.shape)


def _size(src: torch.Tensor, dim: int, dim_size: Optional[int]) -> Tuple[int, ...]:
    if dim_size is None:
        raise _impl.createPoptorchError(
            "torch_scatter: dim_size must be specified and must be a constant: the largest index "
            "is not known when the model is compiled."
        )
    return (*src.shape[:dim], dim_size, *src.shape[dim + 1 :])


def _scatter_mul(
    src: torch.Tensor,
    index: torch.Tensor,
    dim: int = -1,
    out: Optional[torch.Tensor] = None,
    dim_size: Optional[int] = None,
) -> torch.Tensor:
    dim %= src.dim()
    index = _index_like(src, index, dim)
    if out is None:
        out = torch.ones(_size(src, dim, dim_size), dtype=src.dtype)
    return out.scatter_reduce_(dim, index, src, "prod")


def _extreme(reduce: str) -> Callable:
    def scatter(
        src: torch.Tensor,
        index: torch.Tensor,
        dim: int = -1,
        out: Optional[torch.Tensor] = None,
        dim_size: Optional[int] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        dim %= src.dim()
        index = _index_like(src, index, dim)
        if out is None:
            out = torch.zeros(_size(src, dim, dim_size), dtype=src.dtype)
            out = out.scatter_reduce(dim, index, src, reduce, include_self=False)
        else:
            out.scatter_reduce_(dim, index, src, reduce)
        # Where each came from; the number of elements where none of them came through.
        count = src.shape[dim]
        places = torch.arange(count).view([-1 if d == dim else 1 for d in range(src.dim())])
        chosen = torch.where(out.gather(dim, index) == src, places, count)
        nothing = torch.full(out.shape, count, dtype=chosen.dtype)
        return out, nothing.scatter_reduce(dim, index, chosen, "amin")

    return scatter


_BY_NAME: Dict[str, Callable] = {
    "scatter_max": _extreme("amax"),
    "scatter_min": _extreme("amin"),
    "scatter_mul": _scatter_mul,
}


def replacement(function: Any) -> Optional[Callable]:
    """Return what stands for an operator of torch_scatter's; None: it is none of them."""
    if not isinstance(function, (torch._ops.OpOverloadPacket, torch._ops.OpOverload)):
        return None
    namespace, _, name = str(function).partition(".")
    return _BY_NAME.get(name.split(".")[0]) if namespace == "torch_scatter" else None
