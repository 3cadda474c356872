"""``ipu-proxynorm doctor``: what programs run on here, and why."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from typing import Any

import numpy
import torch
from rich.console import Console

import ipu_proxynorm
from ipu_proxynorm import backend
from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.cli.arguments import add_config, read_config
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.prediction.computation import computed

#: What decides how fast the simulator is; docs/simulator.md says how.
SETTINGS = ("POPTORCH_SIM_OPTIMIZE", "POPTORCH_SIM_TOGETHER")


def add_parser(subparsers: Any) -> None:
    """Add ``doctor`` to the sub-commands."""
    parser = subparsers.add_parser(
        "doctor",
        help="say which backend, versions and IPUs are in use",
        description="Say what programs run on here: the Poplar SDK or the simulator, and why; "
        "with CONFIG also how the simulator computes its programs, and why not faster.",
    )
    add_config(parser, "ipu.micro_batch_size=1", nargs="?")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Print backend, its reason, versions and IPUs; what no program would run with is an error."""
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
        f"torchvision {importlib.metadata.version('torchvision')}, numpy {numpy.__version__}, "
        f"Python {platform.python_version()}"
    )
    backend.check_environment()
    if backend.SIMULATED:
        asked = [f"{name}={os.environ[name]}" for name in SETTINGS if os.environ.get(name)]
        count = torch.get_num_threads()
        console.print(f"speed: {', '.join(asked) or 'as it comes'}; threads: {count}")
    if arguments.config is not None:
        show_programs(read_config(arguments, trains=False), console)


def show_programs(config: RunConfig, console: Console) -> None:
    """Print how the programs of a run are computed."""
    if not backend.SIMULATED:
        console.print("programs: an IPU computes one micro-batch after the other")
        return
    for name, sentence in computed(config).items():
        console.print(f"{name}: {sentence}")


def reason() -> str:
    """Return why this backend is in use."""
    asked = os.environ.get(backend.VARIABLE) or "auto"
    if asked != "auto":
        return f"{backend.VARIABLE}={asked}"
    if backend.IMPORT_ERROR is not None:
        error = backend.IMPORT_ERROR
        return f"import poptorch: {type(error).__name__}: {error}"
    if backend.SIMULATED:
        return "the simulator stands in for poptorch in this process"
    return f"import poptorch: {poptorch.__file__}"
