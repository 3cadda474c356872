"""Options as a dictionary with fixed keys and fixed types that can be frozen."""

from __future__ import annotations

import copy
import datetime
from typing import Any, Dict, Optional, Set, TypeVar

import torch

from ._logging import logger
from .alias import names

default_source_location_excludes = [
    "install/poptorch",
    "site-packages/torch",
    "site-packages/poptorch",
]

_SelfT = TypeVar("_SelfT", bound="OptionsDict")


def require(condition: Any, message: str) -> None:
    """Raise ``AssertionError``, PopTorch's answer to a wrong option, unless ``condition`` holds."""
    if not condition:
        raise AssertionError(message)


def requireAtLeastOne(name: str, value: Any) -> None:
    """Refuse a count below 1; its type is checked where it is stored."""
    if isinstance(value, int) and value < 1:
        raise ValueError(f"{name} must be at least 1 but got {value}: give a positive number.")


class ProgressBar:
    """Holds how long compiling took; called with the steps done and the steps in all."""

    def __init__(self) -> None:
        self.compilation_time: Optional[datetime.timedelta] = None
        self._start: Optional[datetime.datetime] = None

    def __call__(self, progress: int, total: int) -> None:
        """Note that ``progress`` of ``total`` steps are done."""
        now = datetime.datetime.now()
        if self._start is None:
            self._start = now
        self.compilation_time = now - self._start
        if progress >= total:
            self._start = None


class OptionsDict:
    """Named values that keep the names and types they were created with.

    Attributes that start with an underscore belong to the object itself and must exist before
    ``_values``, which is why a subclass sets them before it calls ``super().__init__``.
    """

    def __init__(self, **default_values: Any) -> None:
        # Warnings by option name, printed when options are serialised, unless switched off.
        self._warnings: Dict[str, str] = {}
        self._warnings_disabled: Set[str] = set()
        self._is_frozen = False
        self._values = default_values

    def set(self, **kwargs: Any) -> None:
        """Change existing options to values of the same type."""
        self.checkIsFrozen()
        for option, value in kwargs.items():
            require(
                self.exists(option),
                f"Invalid option {option}, valid options are {self._values.keys()}",
            )
            expected = type(self._values[option])
            require(
                isinstance(value, expected),
                f"Unexpected type {type(value)} for option {option}. Expected {expected}",
            )
            self._values[option] = value

    def createOrSet(self, **kwargs: Any) -> None:
        """Like ``set``, but options that do not exist yet are created."""
        self.checkIsFrozen()
        for option, value in kwargs.items():
            if self.exists(option):
                self.set(**{option: value})
            else:
                self._values[option] = value

    def exists(self, option: str) -> bool:
        """Whether there is an option of this name."""
        return option in self.__dict__.get("_values", {})

    def deleteIfExists(self, option: str) -> None:
        """Forget an option."""
        self._values.pop(option, None)

    def _changeFreezeState(self, new_state: bool) -> None:
        self.__dict__["_is_frozen"] = new_state
        for value in self.__dict__.values():
            if "_is_frozen" in getattr(value, "__dict__", {}):
                value.__dict__["_is_frozen"] = new_state

    def _freeze(self) -> None:
        """Refuse changes from now on, here and in the option groups held."""
        self._changeFreezeState(True)

    def _unfreeze(self) -> None:
        self._changeFreezeState(False)

    def checkIsFrozen(self, option: Optional[str] = None) -> None:
        """Raise if a model or data loader already uses these options."""
        if option != "_is_frozen" and self.__dict__.get("_is_frozen", False):
            raise AttributeError("Can't modify frozen Options")

    def __deepcopy__(self: _SelfT, memory: Dict[int, Any]) -> _SelfT:
        copied = self.__class__.__new__(self.__class__)
        memory[id(self)] = copied
        for key, value in self.__dict__.items():
            # A copy belongs to nobody yet, so it may be changed again.
            copied.__dict__[key] = False if key == "_is_frozen" else copy.deepcopy(value, memory)
        return copied

    def __getstate__(self) -> Dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)

    def __setattr__(self, option: str, value: Any) -> None:
        self.checkIsFrozen(option)
        if not option.startswith("_"):
            self.set(**{option: value})
            return
        known = option == "__class__" or "_values" not in self.__dict__ or option in self.__dict__
        if not known:
            raise AttributeError(
                f"Invalid private attribute {option}. Valid attributes: {list(self.__dict__)}"
            )
        super().__setattr__(option, value)

    def __getattr__(self, option: str) -> Any:
        values = self.__dict__.get("_values", {})
        if option not in values:
            raise AttributeError(f"Invalid attribute {option}.")
        return values[option]

    def update(self, other: Dict[str, Any]) -> Dict[str, Any]:
        """Add these options to ``other``, which must not hold any of them, and return it."""
        for option, warning in self._warnings.items():
            if option not in self._warnings_disabled:
                logger.warning(warning)
        common = set(self._values).intersection(other)
        require(
            not common,
            f"Can't merge dictionaries, they have some keys in common: {sorted(common)}",
        )
        other.update(self._values)
        return other

    def toDict(self) -> Dict[str, Any]:
        """Return the options as a new plain dictionary."""
        return self.update({})

    def __call__(self, option: str) -> Any:
        """Return the value of the option of that name."""
        return getattr(self, option)

    def __repr__(self) -> str:
        shown = {**self._values, **{k: v for k, v in self.__dict__.items() if k != "_values"}}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


def _begin_ipu_block(stage_id: int, phase_id: int, ipu_id: int) -> None:
    torch.ops.poptorch.begin_ipu_block(stage_id, phase_id, ipu_id)


__getattr__ = names.getter(__name__)
