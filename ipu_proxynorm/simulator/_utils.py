"""Nested structures of tensors, users' own types among them: flattening, rebuilding, joining."""

from __future__ import annotations

import abc
import functools
import inspect
import itertools
import json
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List, Optional, Type

import torch

from . import _impl
from ._impl import getIpuTensorId, isOnIpu  # noqa: F401 (names of PopTorch's)
from ._logging import logger
from .alias import names


class ICustomArgParser(abc.ABC):
    """How to take the tensors out of an object of the user's and to put others in."""

    @abc.abstractmethod
    def yieldTensors(self, struct: Any) -> Iterator[torch.Tensor]:
        """Yield every tensor in ``struct``, always in the same order."""

    @abc.abstractmethod
    def reconstruct(self, original_structure: Any, tensor_iterator: Iterator[torch.Tensor]) -> Any:
        """Return an object like ``original_structure`` with its tensors from the iterator.

        The iterator gives them in the order of `yieldTensors`; take one for each tensor only.
        """


# PopTorch hands a custom operator's attributes on by the address of a dictionary that stays.
ATTR_PREFIX = "attr:"
attributes_lists: List[Dict[str, Any]] = []


def accessAttributes(attribute_id_str: str) -> Dict[str, Any]:
    """Return a custom operator's attributes, given as JSON or by where one of them is.

    Raises:
        ValueError: it is neither.

    """
    if not isinstance(attribute_id_str, str):
        raise ValueError("Wrong type for attribute_id_str")
    if attribute_id_str.startswith("{"):
        return json.loads(attribute_id_str)
    for attributes in (None, *attributes_lists):  # PopTorch trusts the address instead
        if attribute_id_str == f"{ATTR_PREFIX}{hex(id(attributes))}":
            return attributes or {}
    raise ValueError(
        f"Invalid attribute_id_str {attribute_id_str!r}: expected JSON, or "
        f"{ATTR_PREFIX}<address of a dictionary in poptorch.ops.attributes_lists>"
    )


def deprecated(domain: str, since_version: str, reason: str) -> Callable[[Callable], Callable]:
    """Decorate a function to log, at each call, that it is going to be removed."""

    def decorate(func: Callable) -> Callable:
        @functools.wraps(func)
        def warned(*args: Any, **kwargs: Any) -> Any:
            logger.warning(
                "%s.%s is deprecated since version %s and will be removed in a future release.\n"
                "Reason: %s.",
                domain,
                func.__name__,
                since_version,
                reason,
            )
            return func(*args, **kwargs)

        return warned

    return decorate


def assert_signatures_match(poptorch_method: Callable, reference_method: Callable) -> None:
    """Check that two functions take the same parameters.

    Raises:
        AssertionError: they do not.

    """
    expected = inspect.signature(reference_method).parameters
    given = inspect.signature(poptorch_method).parameters
    assert given == expected, f"Arguments mismatch: expected {expected} but got {given}"


custom_arg_parsers: Dict[type, ICustomArgParser] = {}


def registerCustomArgParser(arg_data_type: Type, arg_parser: Optional[ICustomArgParser]) -> None:
    """Use ``arg_parser`` for arguments of this type; None forgets the present one.

    Raises:
        poptorch.Error: ``arg_parser`` is no `ICustomArgParser`.

    """
    if arg_parser is None:
        custom_arg_parsers.pop(arg_data_type, None)
        return
    if not isinstance(arg_parser, ICustomArgParser):
        raise _impl.createPoptorchError("arg_parser must inherit from ICustomArgParser")
    custom_arg_parsers[arg_data_type] = arg_parser


def getCustomParser(instance: Any) -> Optional[ICustomArgParser]:
    """Return the parser registered for the type of ``instance`` or for one of its bases."""
    for base in type(instance).__mro__ if custom_arg_parsers else ():
        if base in custom_arg_parsers:
            return custom_arg_parsers[base]
    return None


def _tensors(structure: Any, canonical: Any) -> Iterator[torch.Tensor]:
    if isinstance(structure, torch.Tensor):
        yield structure
        return
    parser = getCustomParser(structure)
    if parser is not None:
        yield from parser.yieldTensors(structure)
    elif isinstance(structure, dict):
        for key in structure if canonical is None else canonical:
            yield from _tensors(structure[key], None if canonical is None else canonical[key])
    elif isinstance(structure, (list, tuple)):
        others = itertools.repeat(None) if canonical is None else canonical
        for element, other in zip(structure, others):
            yield from _tensors(element, other)


def flattenTensorStructure(tensors: Any, canonical_structure: Any = None) -> List[torch.Tensor]:
    """Return the tensors in a structure, depth first.

    Args:
        tensors: nested tuples, lists, dictionaries and registered types; anything else is ignored.
        canonical_structure: the same structure, whose dictionaries give the order of the keys.

    """
    return list(_tensors(tensors, canonical_structure))


def reconstructTensorStructure(
    structure: Any,
    values: Iterable[torch.Tensor],
    filter_fn: Callable[[torch.Tensor], bool] = lambda tensor: True,
) -> Any:
    """Return a copy of ``structure`` with its tensors replaced by ``values`` in order.

    Args:
        structure: as for `flattenTensorStructure`.
        values: one tensor for each tensor in ``structure`` that ``filter_fn`` accepts.
        filter_fn: tells which tensors are replaced.

    """
    remaining = iter(values)

    def rebuild(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            return next(remaining) if filter_fn(part) else part
        parser = getCustomParser(part)
        if parser is not None:
            return parser.reconstruct(part, remaining)
        if isinstance(part, dict):
            return type(part)({key: rebuild(value) for key, value in part.items()})
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*(rebuild(element) for element in part))
        if isinstance(part, (tuple, list)):
            return type(part)(rebuild(element) for element in part)
        return part

    return rebuild(structure)


def combine_batch_tensors_gen(
    tensors: List[List[torch.Tensor]],
) -> Generator[torch.Tensor, None, None]:
    """Yield, for each tensor of a batch, its concatenation over the batches."""
    for same in zip(*tensors):
        yield torch.cat(same)


def combined_batch_generator(
    dataloader_iterator: Iterable[Any], num_batches_to_combine: int, drop_last: bool = True
) -> Iterator[Any]:
    """Yield batches made of ``num_batches_to_combine`` consecutive batches each.

    Args:
        dataloader_iterator: gives the batches, all of one structure.
        num_batches_to_combine: batches in each combined batch.
        drop_last: leave out an incomplete combined batch at the end.

    """
    iterator = iter(dataloader_iterator)
    while True:
        batches = list(itertools.islice(iterator, num_batches_to_combine))
        if not batches or (drop_last and len(batches) < num_batches_to_combine):
            return
        flat = [flattenTensorStructure(batch) for batch in batches]
        yield reconstructTensorStructure(batches[-1], combine_batch_tensors_gen(flat))


__getattr__ = names.getter(__name__)
