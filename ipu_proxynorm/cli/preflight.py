"""``ipu-proxynorm preflight CONFIG``: what the compiler would refuse of a run, all of it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from typing import Any

from rich.console import Console

from ipu_proxynorm import backend
from ipu_proxynorm.cli.arguments import add_config, read_config
from ipu_proxynorm.memory.table import sentence
from ipu_proxynorm.prediction.preflight import Flight, Preflight, preflight_run


def add_parser(subparsers: Any) -> None:
    """Add ``preflight`` to the sub-commands."""
    parser = subparsers.add_parser(
        "preflight",
        help="say what PopTorch would refuse of a run, with file and line",
        description="Hold CONFIG's training and validation programs against what PopTorch 3.4 "
        "accepts: operators with types and shapes, options, IPUs, memory. Needs no IPU, no SDK and "
        "no data. Exit status: 0 if nothing is refused, 1 if anything is.",
    )
    add_config(parser, "ipu.precision=16.32")
    parser.add_argument(
        "--operators", action="store_true", help="print every operator with shapes and types"
    )
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Check, print, and return the exit status."""
    if not backend.SIMULATED:
        return _simulated()
    found = preflight_run(read_config(arguments, trains=False))
    show(found, console, arguments.operators)
    return 1 if found.refused else 0


def _simulated() -> int:
    """Run the same command line on the simulator, in a process of its own."""
    environment = {**os.environ, backend.VARIABLE: "simulator"}
    command = [sys.executable, *sys.argv]
    return subprocess.run(command, env=environment, check=False).returncode


def show(found: Preflight, console: Console, operators: bool = False) -> None:
    """Print what was checked, what is refused and what is unproven."""
    for flight in found.flights:
        console.print(_summary(flight))
        if operators:
            for line in flight.operators:
                console.print(f"  {line}")
    if found.memory is not None:
        console.print(f"memory: {sentence(found.memory)}")
    for refusal in found.refused:
        console.print(f"refused: {refusal}")
    for remark in found.unproven:
        console.print(f"unproven: {remark}")
    count = len(found.refused)
    console.print(f"refused: {count}" if count else "nothing refused")


def _summary(flight: Flight) -> str:
    total = sum(flight.kinds.values())
    ipus = f"; {flight.ipus} IPU{'s' if flight.ipus != 1 else ''}" if flight.ipus else ""
    return f"{flight.name}: {total} operators of {len(flight.kinds)} kinds checked{ipus}"
