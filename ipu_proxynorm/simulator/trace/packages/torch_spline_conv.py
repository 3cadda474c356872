"""The package torch_spline_conv's operators, of which PopTorch has handlers: in inference alone.

The package calls them from TorchScript, where no function is seen, and registers them as made of
other operators; so while a model is traced they get kernels of ours (``PyGTorchSplineConvOps.cpp``;
``RegisterMetaOps.cpp.inc:301`` and 575).

Source of the mathematics: Fey et al., SplineCNN, arXiv 1711.08920.
"""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, Optional, Protocol, Sequence, Tuple

import torch

from .. import refusals
from ..origins import Origin
from ..tape import Slot

_NAMESPACE = "torch_spline_conv"


def _pieces(x: torch.Tensor, degree: int) -> List[torch.Tensor]:
    """Return the polynomials of a uniform B-spline at x, from 0 to 1, that are not 0 there."""
    if degree == 1:
        return [1 - x, x]
    if degree == 2:
        return [(1 - x) ** 2 / 2, 0.5 + x - x * x, x * x / 2]
    return [
        (1 - x) ** 3 / 6,
        (3 * x**3 - 6 * x * x + 4) / 6,
        (-3 * x**3 + 3 * x * x + 3 * x + 1) / 6,
        x**3 / 6,
    ]


def spline_basis(
    pseudo: torch.Tensor, kernel_size: torch.Tensor, is_open_spline: torch.Tensor, degree: int
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Return the products of B-splines that are not 0 at each edge, and the weights they are of.

    Args:
        pseudo: (edges, dimensions), coordinates from 0 to 1.
        kernel_size: (dimensions,) number of weights.
        is_open_spline: (dimensions,) 0 where weights repeat in a circle.
        degree: of the splines, 1 to 3.

    Returns:
        products, and indices of weights in int32, each (edges, (degree + 1) ** dimensions).

    """
    dims, base = pseudo.shape[1], degree + 1
    powers = torch.tensor([base**dim for dim in range(dims)])
    digits = torch.arange(base**dims).unsqueeze(1) // powers % base  # (products, dimensions)
    sizes = kernel_size.long()
    place = pseudo.float() * (sizes - degree * is_open_spline.long())
    first = place.floor()
    index = (first.long().unsqueeze(1) + digits) % sizes  # (edges, products, dimensions)
    strides = torch.cat([torch.ones_like(sizes[:1]), sizes[:-1]]).cumprod(0)
    pieces = torch.stack(_pieces(place - first, degree), 2)  # (edges, dimensions, degree + 1)
    basis = pieces[:, torch.arange(dims), digits].prod(2)
    return basis.to(pseudo.dtype), (index * strides).sum(2).int()


def spline_weighting(
    x: torch.Tensor, weight: torch.Tensor, basis: torch.Tensor, weight_index: torch.Tensor
) -> torch.Tensor:
    """Multiply the features of each edge with the sum of its weights.

    Args:
        x: (edges, features).
        weight: (weights, features, new features).
        basis: (edges, products), the share of each weight.
        weight_index: (edges, products), which they are.

    Returns:
        (edges, new features), in the type of x.

    """
    chosen = weight.float()[weight_index.long()]  # (edges, products, features, new features)
    summed = (basis.float()[:, :, None, None] * chosen).sum(1)
    return torch.matmul(x.float().unsqueeze(1), summed).squeeze(1).to(x.dtype)


_BY_NAME: Dict[str, Callable] = {
    "spline_basis": spline_basis,
    "spline_weighting": spline_weighting,
}


def function_of(operator: Any) -> Optional[Callable]:
    """Return what computes an operator of the package; None: it is none of them."""
    namespace, _, name = str(operator).partition(".")
    return _BY_NAME.get(name.split(".")[0]) if namespace == _NAMESPACE else None


class Recording(Protocol):
    """The program as far as it is recorded."""

    training: bool

    def slot_of(self, tensor: torch.Tensor) -> Optional[Slot]:
        """Return the tensor's slot, or None if the program does not know it."""

    def where(self) -> Origin:
        """Return where in the user's program the present operation comes from."""


def check(operator: Any, args: Sequence[Any], recorder: Recording) -> None:
    """Refuse what PopTorch refuses.

    Raises:
        poptorch.Error: a tensor of the host's, a gradient is needed, or a degree of spline that
            there is no kernel of.

    """
    name = str(operator).split(".")[1]
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    for tensor in tensors:
        if recorder.slot_of(tensor) is None:
            raise refusals.host_tensor(tensor, recorder.where())
    if recorder.training and any(tensor.requires_grad for tensor in tensors):
        raise refusals.refuse(
            f"{_NAMESPACE}.{name} has no gradient on the IPU: run it in inference, or write the "
            "layer with operators of torch",
            recorder.where(),
        )
    if name == "spline_basis" and args[3] not in (1, 2, 3):
        raise refusals.refuse(
            f"spline_basis: a degree of 1, 2 or 3, not {args[3]}", recorder.where()
        )


@contextlib.contextmanager
def seen() -> Iterator[None]:
    """Let dispatchers see the package's operators meanwhile, if it is loaded."""
    operators = getattr(torch.ops, _NAMESPACE)
    library: Any = None
    for name, function in _BY_NAME.items():
        if hasattr(operators, name):
            library = library or torch.library.Library(_NAMESPACE, "IMPL")
            library.impl(name, function, "CPU")
    try:
        yield
    finally:
        del library  # which takes the kernels back
