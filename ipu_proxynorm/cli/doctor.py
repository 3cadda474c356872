"""``ipu-proxynorm doctor``: what programs run on here, and why."""

from __future__ import annotations

import argparse
import os
import platform
from typing import Any

import numpy
import torch
import torchvision
from rich.console import Console

import ipu_proxynorm
from ipu_proxynorm import backend
from ipu_proxynorm.backend import poptorch


def add_parser(subparsers: Any) -> None:
    """Add ``doctor`` to the sub-commands."""
    parser = subparsers.add_parser(
        "doctor",
        help="say which backend, versions and IPUs are in use",
        description="Say what programs run on here: the Poplar SDK or the simulator, and why.",
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Print backend, its reason, versions and IPUs."""
    console.print(f"backend: {'simulator' if backend.SIMULATED else 'Poplar SDK'} ({reason()})")
    if backend.SIMULATED:
        device = os.environ.get("POPTORCH_SIM_DEVICE") or "the CPU"
        console.print(f"IPUs: none; programs are simulated on {device}")
    elif poptorch.ipuHardwareIsAvailable():
        console.print(f"IPUs: available, hardware version {poptorch.ipuHardwareVersion()}")
    else:
        console.print("IPUs: none seen by the SDK; programs run on its IPU Model")
    console.print(
        f"versions: ipu-proxynorm {ipu_proxynorm.__version__}, poptorch {poptorch.__version__}, "
        f"torch {torch.__version__}, "
        f"torchvision {torchvision.__version__}, numpy {numpy.__version__}, "
        f"Python {platform.python_version()}"
    )


def reason() -> str:
    """Return why this backend is in use."""
    asked = os.environ.get(backend.VARIABLE, "auto")
    if asked != "auto":
        return f"{backend.VARIABLE}={asked}"
    if backend.IMPORT_ERROR is not None:
        error = backend.IMPORT_ERROR
        return f"import poptorch: {type(error).__name__}: {error}"
    if backend.SIMULATED:
        return "the simulator stands in for poptorch in this process"
    return f"import poptorch: {poptorch.__file__}"
