"""A model's parameters and buffers: swapped for the device's while it is traced, then checked.

Those of integers and truth values are constants of the program, with the values that they have when
it is compiled (``dispatchers/JitDispatch.cpp:108-113``): the host's later values do not reach the
device, and what the model writes to them lasts until the end of the micro-batch.
"""

from __future__ import annotations

import contextlib
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

import torch

from .. import _impl
from . import refusals

# These modules may rebind their buffers; what they bind is taken over.
_MAY_REBIND = (torch.nn.modules.batchnorm._BatchNorm,)


class _Place(NamedTuple):
    module: torch.nn.Module
    name: str
    full_name: str
    kind: str  # "Parameter" or "Buffer"
    tensor: torch.Tensor


def _places(model: torch.nn.Module) -> Iterator[_Place]:
    for prefix, module in model.named_modules():
        for kind, tensors in (("Parameter", module._parameters), ("Buffer", module._buffers)):
            for name, tensor in tensors.items():
                if tensor is not None:
                    yield _Place(module, name, f"{prefix}.{name}" if prefix else name, kind, tensor)


def is_variable(tensor: torch.Tensor) -> bool:
    """Tell whether a parameter or buffer is the device's own, rather than a constant."""
    return tensor.is_floating_point()


def variables(
    model: torch.nn.Module,
) -> Tuple[Dict[str, torch.Tensor], Dict[str, torch.Tensor]]:
    """Return parameters and buffers of floats by name, shared ones under their first name."""
    found: Dict[str, Dict[str, torch.Tensor]] = {"Parameter": {}, "Buffer": {}}
    seen = set()
    for place in _places(model):
        if id(place.tensor) not in seen and is_variable(place.tensor):
            seen.add(id(place.tensor))
            found[place.kind][place.full_name] = place.tensor
    return found["Parameter"], found["Buffer"]


@contextlib.contextmanager
def swapped(
    model: torch.nn.Module, replace: Callable[[str, torch.Tensor], torch.Tensor]
) -> Iterator[Dict[str, torch.Tensor]]:
    """Put other tensors in the place of the model's parameters and buffers meanwhile.

    Args:
        model: the model; tensors that it uses in several places stay shared.
        replace: takes a tensor's name and the tensor, and returns what to put there.

    Yields:
        The replacements by name.

    Raises:
        poptorch.Error: on the way out, where the model has rebound or deleted one.

    """
    places: List[_Place] = list(_places(model))
    replacements: Dict[int, torch.Tensor] = {}
    names: Dict[str, torch.Tensor] = {}
    for place in places:
        if id(place.tensor) not in replacements:
            names[place.full_name] = replace(place.full_name, place.tensor)
            replacements[id(place.tensor)] = names[place.full_name]
    try:
        for place in places:
            setattr(place.module, place.name, replacements[id(place.tensor)])
        yield names
        _check(places, replacements)
    finally:
        for place in places:
            if place.name not in getattr(place.module, f"_{place.kind.lower()}s"):
                place.module.__dict__.pop(place.name, None)
                if place.kind == "Parameter":
                    place.module.register_parameter(place.name, place.tensor)  # type: ignore[arg-type]
                else:
                    place.module.register_buffer(place.name, place.tensor)
            else:
                setattr(place.module, place.name, place.tensor)


def _check(places: List[_Place], replacements: Dict[int, torch.Tensor]) -> None:
    for place in sorted(places, key=lambda place: place.kind):  # buffers first
        given = replacements[id(place.tensor)]
        tensors = getattr(place.module, f"_{place.kind.lower()}s")
        found = dict(tensors.items()).get(place.name)  # torch.jit's mapping has no get
        if found is given or isinstance(place.module, _MAY_REBIND):
            continue
        error = None
        if found is None:
            error = _impl.createPoptorchError(
                f"{place.kind} {place.full_name} is removed from the model when calling the "
                "forward method."
            )
        elif found.data_ptr() != given.data_ptr():
            error = _impl.createPoptorchError(
                f"{place.kind} {place.full_name} is reassigned within the model when calling the "
                f"forward method. This is not supported. Consider using self.{place.full_name}"
                ".copy_(src) to copy data from a source tensor, where src is the name of the "
                "source tensor."
            )
        if error is not None:
            error.add_location(refusals.definition(place.module.forward))
            raise error
