"""The names ``poptorch`` and ``popdist``: the Poplar SDK's where installed, else the simulator's.

Everything else says ``from ipu_proxynorm.backend import poptorch``. The environment variable
``IPU_PROXYNORM_BACKEND`` decides: ``auto`` (default), ``sdk`` (no fallback) or ``simulator``.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any, Callable, Optional

from ipu_proxynorm.errors import UserError, unknown_name

if TYPE_CHECKING:
    from ipu_proxynorm import simulator as poptorch

__all__ = [
    "IMPORT_ERROR",
    "SIMULATED",
    "VARIABLE",
    "at_once",
    "custom_operator",
    "inspect",
    "popdist",
    "poptorch",
]

VARIABLE = "IPU_PROXYNORM_BACKEND"
CHOICES = ("auto", "sdk", "simulator")
SIMULATOR = "ipu_proxynorm.simulator"

#: Why the SDK's module could not be imported; None where it was, or was not asked for.
IMPORT_ERROR: Optional[ImportError] = None

_choice = os.environ.get(VARIABLE, "auto")
if _choice not in CHOICES:
    raise unknown_name(f"{VARIABLE}: backend", _choice, CHOICES)
if _choice == "simulator":
    poptorch = importlib.import_module(SIMULATOR)
else:
    try:
        poptorch = importlib.import_module("poptorch")
        if getattr(poptorch, "__file__", None) is None:
            folder = next(iter(poptorch.__path__))
            raise ImportError(f"'poptorch' is a folder without a module: {folder}")
    except ImportError as error:
        if _choice == "sdk":
            raise
        IMPORT_ERROR = error
        poptorch = importlib.import_module(SIMULATOR)

#: Whether ``poptorch`` is the simulator (also where a program runs under the simulator's alias).
SIMULATED: bool = poptorch.__name__.startswith(SIMULATOR)

#: None where the SDK's poptorch comes without popdist: such a process works alone.
popdist: Any = None
_package = f"{SIMULATOR}.popdist" if SIMULATED else "popdist"
if SIMULATED or importlib.util.find_spec(_package) is not None:
    popdist = importlib.import_module(_package)
    importlib.import_module(f"{_package}.poptorch")


def inspect(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """Trace a wrapped model, and return what PopTorch 3.4 would refuse of it.

    Args:
        executor: what ``poptorch.trainingModel`` or ``poptorch.inferenceModel`` of this module
            returned, not compiled yet.
        args: the inputs of one host call.
        kwargs: likewise.

    Returns:
        An `ipu_proxynorm.simulator.preflight.Verdict`.

    Raises:
        UserError: the Poplar SDK is in use, which compiles and says the first thing only.
    """
    if not SIMULATED:
        raise UserError(
            f"what PopTorch would refuse is found by the simulator: set {VARIABLE}=simulator"
        )
    return importlib.import_module(f"{poptorch.__name__}.preflight").inspect(
        executor, *args, **kwargs
    )


def custom_operator(library: str, name: str, domain: str, equivalent: Callable[..., Any]) -> None:
    """Make a custom operator known: its compiled library, or to the simulator what it computes.

    Args:
        library: path of the shared library.
        name: of the operator.
        domain: of the operator.
        equivalent: takes the inputs, then the attributes as keywords.

    Raises:
        UserError: the library cannot be loaded.
    """
    if SIMULATED:
        poptorch.registerCustomOp(name, domain, equivalent)
        return
    try:
        ctypes.cdll.LoadLibrary(library)
    except OSError as error:
        raise UserError(
            f"library={library!r}: cannot be loaded ({error}); expected the shared library that "
            "make builds of the operator's source, with the Poplar SDK enabled"
        ) from error


def at_once(executor: Any) -> Any:
    """Return how many micro-batches of a compiled program are computed at once, and why not more.

    Args:
        executor: compiled.

    Returns:
        An `ipu_proxynorm.simulator.schedule.AtOnce`; None on IPUs, where each stage computes one.

    """
    if not SIMULATED:
        return None
    return importlib.import_module(f"{poptorch.__name__}.schedule").at_once(executor)
