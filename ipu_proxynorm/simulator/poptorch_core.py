"""What PopTorch's C++ module offers to Python: error classes, and queries that programs use."""

from __future__ import annotations

import enum
import os
import sys
from typing import Any, Dict, NoReturn, Tuple, Type

from ._errors import Error, RecoverableError, UnrecoverableError, createError
from .alias import names
from .settings import session_options

__all__ = [
    "Error",
    "RecoverableError",
    "TestErrorType",
    "UnrecoverableError",
    "createError",
    "ipuHardwareVersion",
    "isCompilingWithDispatcher",
    "setCompiling",
    "setLogLevel",
    "setPopartLogLevel",
]


#: With the value 1 this environment variable makes the machine one with IPUs.
HARDWARE = "POPTORCH_SIM_HARDWARE"


class TestErrorType(enum.Enum):
    """Kinds of error that `_throwTestError` raises, to try a program's handlers."""

    __test__ = False  # not a test case, whatever pytest makes of its name
    Poptorch = 0
    Popart = 1
    PopartInternal = 2
    Poplibs = 3
    PoplarUnrecoverable = 4
    PoplarUnknown = 5
    PoplarRecoverableFullReset = 6
    PoplarLinkError = 7


_TEST_ERRORS: Dict[TestErrorType, Tuple[Type[Error], str, str]] = {
    TestErrorType.Poptorch: (Error, "poptorch_cpp_error", ""),
    TestErrorType.Popart: (Error, "popart_exception", ""),
    TestErrorType.PopartInternal: (Error, "popart_internal_exception", ""),
    TestErrorType.Poplibs: (Error, "poplibs_exception", ""),
    TestErrorType.PoplarUnrecoverable: (
        UnrecoverableError,
        "poplar_unrecoverable_runtime_error",
        "",
    ),
    TestErrorType.PoplarUnknown: (Error, "poplar_unknown_runtime_error", ""),
    TestErrorType.PoplarRecoverableFullReset: (
        RecoverableError,
        "poplar_recoverable_runtime_error",
        "",
    ),
    TestErrorType.PoplarLinkError: (Error, "poplar_link_error", ". Output: -lfoo not found"),
}


def _throwTestError(kind: TestErrorType) -> NoReturn:
    """Raise an error as a machine in that trouble would, for programs to try their handlers on.

    Raises:
        Error: of the class, and with the attributes, that belong to the kind.

    """
    cls, layer, detail = _TEST_ERRORS[kind]
    error = cls(f"'{layer}': This is a test error{detail}")
    error.type = layer
    error.message = f"This is a test error{detail}"
    caller = sys._getframe(1)
    error.location = f"{caller.f_code.co_filename}:{caller.f_lineno}"
    if isinstance(error, RecoverableError):
        error.recovery_action = "FULL_RESET"
    raise error


_compiling = False


def isCompilingWithDispatcher() -> bool:
    """Tell whether a model is being traced at this moment."""
    return _compiling


def destroyDispatcher() -> None:
    """Do nothing: the simulator has no dispatcher that outlives a trace."""


def poptorchAtExit() -> None:
    """Do nothing: the simulator holds nothing that has to be given up at exit."""


def setCompiling(value: bool) -> None:
    """Note that tracing begins or ends."""
    global _compiling
    _compiling = value


def ipuHardwareVersion(num_ipus: int = 1) -> int:
    """Return the version of the IPUs present; 0 if there are none.

    The simulator has none, unless ``POPTORCH_SIM_HARDWARE=1`` asks it to answer as a machine with
    up to 64 Mk2 IPUs would.
    """
    present = os.environ.get(HARDWARE, "0") == "1"
    return 2 if present and 0 < num_ipus <= 64 else 0


def setLogLevel(level: int) -> None:
    """Accept a level for the C++ layers, of which there are none."""


def setPopartLogLevel(level: int) -> None:
    """Accept a level for PopART, which there is none of."""


def _validateOptions(options: Dict[str, Any]) -> None:
    """Check a dictionary of options as the compiler would.

    Raises:
        Error: an option that PopART does not have, or a value of the wrong type.

    """
    session_options.validate(options)


__getattr__ = names.getter(__name__)
