"""What is put in the place of functions of other packages while a model is compiled."""

from __future__ import annotations

from typing import Any, ClassVar, List, Type


class _SetDefaultDeviceType:
    """PopTorch's own: tensors made in ``forward`` are the device's unless they say otherwise.

    Here the trace sees to that (`simulator/trace/functions.py`), so that nothing is replaced.
    """

    def replace(self) -> None:
        """Put the substitutes in place."""

    def restore(self) -> None:
        """Take them out again."""


class _OverwriteContextManager:
    """While active, every registered substitution is in place: ``replace()``, then ``restore()``.

    Source: PopTorch's ``python/_poplar_executor.py:103-126``.
    """

    _subsitution_manager_types: ClassVar[List[Type[Any]]] = [_SetDefaultDeviceType]

    def __init__(self) -> None:
        self.substitution_managers = [make() for make in self._subsitution_manager_types]

    def __enter__(self) -> _OverwriteContextManager:
        for manager in self.substitution_managers:
            manager.replace()
        return self

    def __exit__(self, *_: Any) -> None:
        for manager in reversed(self.substitution_managers):
            manager.restore()

    @classmethod
    def registerSubsitutionManager(cls, type: Type[Any]) -> None:
        """Let a class's objects, one for each compilation, replace functions."""
        if type not in cls._subsitution_manager_types:
            cls._subsitution_manager_types.append(type)
