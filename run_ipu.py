#!/usr/bin/env python3
"""The one program: train, validate, doctor. ``python run_ipu.py --help`` says more."""

import sys


def run() -> int:
    """Return the exit status of the command; Ctrl-C is one sentence while libraries load, too."""
    try:
        from ipu_proxynorm.cli import main
    except KeyboardInterrupt:
        print("run_ipu.py: interrupted", file=sys.stderr)
        return 130
    return main()


if __name__ == "__main__":
    sys.exit(run())
