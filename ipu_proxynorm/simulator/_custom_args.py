"""Registration of parsers for the user's own argument types."""

from __future__ import annotations

import abc
from typing import Any, Dict, Iterator, Optional, Type

import torch

from . import _impl


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
