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
    "check_environment",
    "custom_operator",
    "inspect",
    "popdist",
    "poptorch",
]

VARIABLE = "IPU_PROXYNORM_BACKEND"
CHOICES = ("auto", "sdk", "simulator")
SIMULATOR = "ipu_proxynorm.simulator"
_OPTIONS = "POPTORCH_DEFAULT_OPTIONS"
#: What the simulator reads variables of its own with: POPTORCH_SIM_DEVICE, POPTORCH_SIM_TOGETHER.
_SIMULATORS = (("trace.compute_device", "chosen"), ("device.together", "images_asked"))

#: Why the SDK's module could not be imported; None where it was, or was not asked for.
IMPORT_ERROR: Optional[ImportError] = None

_choice = os.environ.get(VARIABLE) or "auto"
if _choice not in CHOICES:
    raise unknown_name(f"{VARIABLE}: backend", _choice, CHOICES)


def _load(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ValueError as error:  # PopTorch sets its log's level as it is imported
        level = os.environ.get("POPTORCH_LOG_LEVEL")
        if level is None:
            raise
        raise UserError(f"POPTORCH_LOG_LEVEL={level}: {error}; set another, or unset it") from error


if _choice == "simulator":
    poptorch = _load(SIMULATOR)
else:
    try:
        poptorch = _load("poptorch")
        if getattr(poptorch, "__file__", None) is None:
            folder = next(iter(poptorch.__path__))
            raise ImportError(f"'poptorch' is a folder without a module: {folder}")
    except ImportError as error:
        if _choice == "sdk":
            raise UserError(
                f"{VARIABLE}=sdk: poptorch cannot be imported ({error}); enable the Poplar SDK in "
                f"this shell and install its poptorch, or unset {VARIABLE} to simulate"
            ) from error
        IMPORT_ERROR = error
        poptorch = _load(SIMULATOR)

#: Whether ``poptorch`` is the simulator (also where a program runs under the simulator's alias).
SIMULATED: bool = poptorch.__name__.startswith(SIMULATOR)

#: None where the SDK's poptorch comes without popdist: such a process works alone.
popdist: Any = None
_package = f"{SIMULATOR}.popdist" if SIMULATED else "popdist"
if SIMULATED or importlib.util.find_spec(_package) is not None:
    popdist = importlib.import_module(_package)
    importlib.import_module(f"{_package}.poptorch")


def check_environment() -> None:
    """Check the environment variables that decide how programs are run, before any is.

    Raises:
        UserError: names the variable, its value, and what was expected.
    """
    options = os.environ.get(_OPTIONS)
    try:
        poptorch.Options()
    except Exception as error:  # of whatever type its parts raise
        if options is None:
            raise
        raise UserError(
            f"{_OPTIONS}={options}: not the JSON of PopTorch's options ({_text(error)}); mend it, "
            f"or unset it"
        ) from error
    if SIMULATED:
        for place, name in _SIMULATORS:
            check = getattr(importlib.import_module(f"{poptorch.__name__}.{place}"), name)
            try:
                check()
            except poptorch.Error as error:
                raise UserError(_text(error).rstrip(".")) from error


def _text(error: Exception) -> str:
    """Return an error in one line, without the name of the layer that PopTorch puts before it."""
    return " ".join(str(getattr(error, "message", error)).split())


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
