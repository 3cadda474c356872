"""The program ``run_ipu.py``: finds the sub-command and turns errors into one sentence."""

from __future__ import annotations

import argparse
import sys
from typing import Optional, Sequence

from rich.console import Console

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.cli import doctor, train, validate
from ipu_proxynorm.errors import UserError

COMMANDS = (train, validate, doctor)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of ``run_ipu.py`` with all sub-commands."""
    parser = argparse.ArgumentParser(
        prog="run_ipu.py", description="Proxy-normalized networks on Graphcore IPUs, or simulated."
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error came from, for developers"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(subparsers)
    return parser


def parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    """Return the parsed command line; overrides may stand before, between and after options."""
    parser = create_parser()
    parsed, rest = parser.parse_known_args(arguments)
    # argparse gives a list of values to one place only: what stands after an option comes here.
    overrides = getattr(parsed, "overrides", None)
    wrong = [word for word in rest if overrides is None or word.startswith("-")]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if overrides is not None:
        overrides.extend(rest)
    return parsed


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command and return its exit status: 0, 2 for wrong input, 130 when interrupted."""
    parsed = parse(arguments)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    try:
        parsed.command(parsed, console)
    except (UserError, poptorch.Error) as error:
        if parsed.traceback:
            raise
        refused = "" if isinstance(error, UserError) else "PopTorch refused: "
        print(f"run_ipu.py: error: {refused}{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("run_ipu.py: interrupted", file=sys.stderr)
        return 130
    return 0
