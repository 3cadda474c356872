"""The program ``ipu-proxynorm``: finds the sub-command and turns errors into one sentence."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
import warnings
from typing import Any, Iterator, Optional, Sequence

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.cli import (
    analyse,
    benchmark,
    compare,
    doctor,
    export,
    memory,
    plan,
    predict,
    preflight,
    runs,
    schema,
    train,
    validate,
)
from ipu_proxynorm.cli.output import (
    CleanConsole,
    CleanParser,
    Output,
    ReaderLeft,
    open_standard_streams,
)
from ipu_proxynorm.errors import Shared, UserError, UserNotice, program_name, say
from ipu_proxynorm.exhausted import exhausted
from ipu_proxynorm.ipu import launched
from ipu_proxynorm.run.interruption import Interrupted, ending_in_a_sentence
from ipu_proxynorm.run.meeting import connect
from ipu_proxynorm.run.processes import Processes, ProcessLost

COMMANDS = (
    train,
    validate,
    predict,
    export,
    memory,
    plan,
    preflight,
    runs,
    analyse,
    compare,
    benchmark,
    schema,
    doctor,
)


def create_parser() -> argparse.ArgumentParser:
    """Return the parser of the program with all its sub-commands."""
    parser = CleanParser(
        prog=program_name(),
        description="Proxy-normalized networks on Graphcore IPUs, or simulated.",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error came from, for developers"
    )
    parser.set_defaults(distributed=False)
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


@contextlib.contextmanager
def notices_alone() -> Iterator[None]:
    """Print notices to the user without our own file and line; other warnings as they are."""
    with warnings.catch_warnings():

        def show(message: Any, category: Any, *where: Any, **more: Any) -> None:
            if issubclass(category, UserNotice):
                say(f"{program_name()}: warning: {message}")
            else:
                filename, line = where[:2]
                say(warnings.formatwarning(message, category, filename, line).rstrip("\n"))

        warnings.showwarning = show
        yield


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run one command and return its exit status.

    0; 1 where a program would be refused, or takes more memory than --fail-over allows; 2 for wrong
    input; 128 plus the number of the signal that stopped it, 130 for Ctrl-C.
    Of several processes that torchrun or poprun started, the first one prints.
    """
    open_standard_streams()
    parsed = parse(arguments)
    processes = Processes()
    output = Output(sys.stdout)
    failure: Optional[BaseException] = None
    status = 0
    try:
        if parsed.distributed:
            with ending_in_a_sentence():
                processes = connect(lambda: parsed.patience(parsed))
        if parsed.distributed or works_alone():
            console = CleanConsole(output, quiet=not processes.first)
            with notices_alone(), ending_in_a_sentence():
                if parsed.distributed:
                    parsed.command(parsed, console, processes)
                else:
                    status = parsed.command(parsed, console) or 0
            output.flush()
    except (UserError, poptorch.Error, Interrupted, KeyboardInterrupt, ReaderLeft) as error:
        if parsed.traceback and not isinstance(error, ReaderLeft):
            raise
        failure = error
        if isinstance(error, Interrupted) and processes.alone:  # while they meet: one says so
            error.quiet = launched().index > 0
    except (OSError, MemoryError, RuntimeError) as error:
        why = exhausted(error)
        if parsed.traceback or why is None:
            raise
        failure = UserError(why)
    if failure is not None:
        # What the failed calls held is let go: to report it takes memory, too.
        failure.__traceback__ = failure.__cause__ = failure.__context__ = None
        status = report(failure, processes)
    if failure is None or (isinstance(failure, Shared) and failure.agreed):
        processes.leave()
    return status


def works_alone() -> bool:
    """Tell whether this process is the only one, as a command that is for one needs.

    Raises:
        UserError: there are several processes; the first says so.
    """
    instance = launched()
    if instance.count > 1 and instance.index == 0:
        raise UserError(
            f"{instance.count} processes were started, but only train and validate run in several; "
            f"start this command without torchrun or poprun"
        )
    return instance.count == 1


def report(error: BaseException, processes: Optional[Processes] = None) -> int:
    """Print an error in one sentence, unless another process does; return the exit status.

    Args:
        error: the error.
        processes: those of the run, who are told of it; None: this one only.
    """
    number = 0
    if isinstance(error, Interrupted):
        text, number = str(error), error.signal_number
    elif isinstance(error, KeyboardInterrupt):
        text, number = "interrupted", signal.SIGINT
    elif isinstance(error, ReaderLeft):
        text, number = "", signal.SIGPIPE
    else:
        refused = "" if isinstance(error, UserError) else "PopTorch refused: "
        text = f"{refused}{error}"
    shared = isinstance(error, Shared) and (error.agreed or error.quiet)
    known = shared or isinstance(error, ProcessLost)
    said = processes.part(text, number) if processes is not None and not known else False
    if text and not said and not (isinstance(error, Shared) and error.quiet):
        say(f"{program_name()}: {text if number else f'error: {text}'}")
    return 128 + number if number else 2
