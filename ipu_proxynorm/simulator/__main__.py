"""Runs a PopTorch program, unchanged, with the simulator in the place of ``poptorch``.

    python -m ipu_proxynorm.simulator PROGRAM.py ARGS...
    python -m ipu_proxynorm.simulator -m MODULE ARGS...

``popdist`` is provided too, and the processes that the program starts have both. With
``POPTORCH_SIM_HARDWARE=1`` in the environment the simulator answers as a machine with IPUs would.
"""

from __future__ import annotations

import os
import runpy
import sys
from typing import List

from .alias.provide import provide

_USAGE = "usage: python -m ipu_proxynorm.simulator (PROGRAM.py | -m MODULE) [ARGS...]"


def main(arguments: List[str]) -> None:
    """Run what the command line names, as Python itself would."""
    is_module = arguments[:1] == ["-m"]
    arguments = arguments[1:] if is_module else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__ if arguments else _USAGE, file=sys.stdout if arguments else sys.stderr)
        sys.exit(0 if arguments else 2)
    program = arguments[0]
    if not is_module and not os.path.exists(program):
        print(f"{_USAGE}\nThere is no file {program!r}.", file=sys.stderr)
        sys.exit(2)
    provide()
    sys.argv = arguments
    if is_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(program)))
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
