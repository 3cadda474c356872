"""Errors that a user can mend: one sentence with key, value, expectation and fix."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sys
from typing import Iterable, Iterator, Sequence

#: Line breaks and tabs aside, what acts on a terminal instead of being shown: control characters
#: (escape sequences begin with one), and marks that change the direction of text; and bytes of
#: names that are no UTF-8, as Python keeps them, which no stream takes.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Shared:
    """Mixin of errors that the processes of a run may raise together.

    Attributes:
        agreed: all processes of the run raise it.
        quiet: another one prints it.
    """

    agreed = quiet = False

    def share(self, *, quiet: bool) -> None:
        """Note that all processes of the run raise it, and whether another one prints it."""
        self.agreed, self.quiet = True, quiet


class UserError(Shared, ValueError):
    """Input that a user can correct. Command lines print its text alone and exit with status 2."""


class UserNotice(UserWarning):
    """What a user should know, in one sentence. Command lines print its text alone and go on."""


def printable(text: str) -> str:
    """Return text whose control characters are written out as Python does.

    Whatever a command prints goes through here: names of files, classes and runs, and texts of
    checkpoints are other people's, and must not act on the terminal.
    """
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def say(text: str) -> None:
    """Print a line on standard error; where nobody can read it, go on."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        _forget_unwritten()


def _forget_unwritten() -> None:
    """Drop what standard error could not take.

    Whoever flushes it next would fail: multiprocessing before it starts a worker, Python at its
    end. What comes later may be written again.
    """
    with contextlib.suppress(OSError, ValueError):
        number = sys.stderr.fileno()
        kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, number)
            sys.stderr.flush()
        finally:
            os.dup2(kept, number)
            os.close(kept)
            os.close(nowhere)


def nearest(name: str, choices: Iterable[str], count: int = 3) -> list[str]:
    """Return up to ``count`` of ``choices`` that ``name`` may have been meant to be, best first."""
    return difflib.get_close_matches(name, list(choices), n=count, cutoff=0.5)


def unknown_name(what: str, name: str, choices: Sequence[str], fix: str = "") -> UserError:
    """Return the error for ``name`` not being one of ``choices``, the likeliest ones first."""
    close = nearest(name, choices)
    hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
    listed = ", ".join(choices) if choices else "none"
    return UserError(f"{what} {name!r} is unknown: {hint}expected one of: {listed}{fix}")


@contextlib.contextmanager
def blame(key: str, value: object) -> Iterator[None]:
    """Name the configuration key behind a ``ValueError`` that a library function raises inside."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{key}={value}: {error}") from error


def nearest_number(value: float, choices: Iterable[float]) -> float:
    """Return the one of ``choices`` closest to ``value``, the smaller of two."""
    return min(choices, key=lambda choice: (abs(choice - value), choice))


def program_name() -> str:
    """Return how this program was started, as messages and usage name it."""
    folder, started = os.path.split(sys.argv[0] if sys.argv else "")
    if started == "__main__.py" and os.path.basename(folder) == "ipu_proxynorm":
        return "python -m ipu_proxynorm"
    return started if started == "run_ipu.py" else "ipu-proxynorm"
