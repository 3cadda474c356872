"""``poptorch.Attribute``: attributes of the operators that are called within a context."""

from __future__ import annotations

import copy
from types import TracebackType
from typing import Any, ClassVar, Dict, Optional, Type


class Attribute:
    """Context in which new operators carry the given attributes, ``Attribute(name={key: value})``.

    The simulator computes the same values with or without them; they nest and are restored on exit.
    """

    _current_attrs: ClassVar[Dict[str, Dict[str, Any]]] = {}

    def __init__(self, **kwargs: Dict[str, Any]) -> None:
        self._kwargs = kwargs
        self._saved: Dict[str, Dict[str, Any]] = {}

    def __enter__(self) -> None:
        self._saved = Attribute._current_attrs
        merged = copy.deepcopy(self._saved)
        for name, attributes in self._kwargs.items():
            merged.setdefault(name, {}).update(attributes)
        Attribute._current_attrs = merged

    def __exit__(
        self,
        exc_type: Optional[Type[BaseException]],
        exc: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        Attribute._current_attrs = self._saved
