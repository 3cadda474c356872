"""The logger of the simulator and its levels, under PopTorch's names."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Any, Tuple, Union

from .alias import names as _names

logger = logging.getLogger("poptorch::python")

# PopTorch's name -> (its C++ level, Python's level). Names that end in an underscored word are
# accepted but not listed in messages, as PopTorch keeps them to itself.
_LOG_LEVEL_MAPPING = {
    "TRACE": (0, logging.DEBUG),
    "TRACE_ALL": (0, logging.DEBUG),
    "DEBUG": (1, logging.DEBUG),
    "DEBUG_IR": (1, logging.DEBUG),
    "INFO": (2, logging.INFO),
    "WARN": (3, logging.WARNING),
    "ERR": (4, logging.ERROR),
    "OFF": (6, logging.CRITICAL),
}


_INTERNAL_ONLY = ("TRACE_ALL", "DEBUG_IR")


def _public_names() -> Tuple[str, ...]:
    return tuple(sorted(name for name in _LOG_LEVEL_MAPPING if name not in _INTERNAL_ONLY))


def setPopartLogLevel(level: str) -> None:
    """Check the level; there is no PopART to pass it on to.

    Raises:
        ValueError: ``level`` is not the name of a level.

    """
    if not isinstance(level, str) or level not in _LOG_LEVEL_MAPPING:
        raise ValueError("Level must be one of " + ", ".join(_LOG_LEVEL_MAPPING))


def setLogLevel(level: Union[str, int]) -> None:
    """Set how much the simulator logs.

    Raises:
        ValueError: ``level`` is neither the name nor the number of a level.

    """
    if isinstance(level, int):
        names = [name for name, (number, _) in _LOG_LEVEL_MAPPING.items() if number == level]
        if not names:
            raise ValueError("Invalid log level integer")
        level = names[0]
    if level not in _LOG_LEVEL_MAPPING:
        names = list(_public_names())
        listed = ", ".join(names[:-1]) + " and " + names[-1]
        raise ValueError(f"Unknown log level: {level}. Valid values are {listed}")
    logger.setLevel(_LOG_LEVEL_MAPPING[level][1])


class _PoptorchFormatter(logging.Formatter):
    """``[time] [poptorch::python] [level] message``, with PopTorch's lower-case levels."""

    def __init__(self) -> None:
        super().__init__("[%(asctime)s] [%(name)s] [%(level)s] %(message)s", datefmt="%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        record.level = record.levelname.lower()
        return super().format(record)


class _Console(logging.Handler):
    """Writes to what ``sys.stderr`` is when a message comes, even if it has been redirected."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            self.handleError(record)


def _excepthook(*args: Any) -> None:
    """Log an exception with its traceback: PopTorch's ``sys.excepthook``, which it installs."""
    lines = traceback.format_exception(*args)
    logger.critical("%s\n%s", lines[-1], "".join(lines))


if not logger.handlers:
    _console = _Console()
    _console.setFormatter(_PoptorchFormatter())
    logger.addHandler(_console)
setLogLevel(os.environ.get("POPTORCH_LOG_LEVEL", "WARN"))

__getattr__ = _names.getter(__name__)
