"""Files of one JSON value a line, appended while a program runs that may be killed in a write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, Iterator, List, TypeVar

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.whole import appending

T = TypeVar("T")


def append_line(path: Path, value: Any) -> None:
    """Append ``value``; a line before it whose write was cut off is removed.

    Raises:
        OSError: the file cannot be written.

    """
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = path.read_bytes() if path.is_file() else b""
    if kept and not kept.endswith(b"\n"):
        path.write_bytes(kept[: kept.rfind(b"\n") + 1])
    with appending(path) as stream:
        stream.write(f"{json.dumps(value)}\n".encode())


class Unexpected(ValueError):
    """A line's value is not what it should be; the text says what of it."""


def each_line(path: Path, parse: Callable[[Any], T], expected: str) -> Iterator[T]:
    """Yield each line, parsed, whose write was not cut off; none if there is no file.

    Args:
        path: the file.
        parse: makes of a JSON value what is yielded.
        expected: what a line should be, and what to do where it is not, for the error.

    Raises:
        UserError: ``parse`` or the JSON reader finds a line wrong, or the file cannot be read.

    """
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            for number, line in enumerate(stream, 1):
                if line.endswith("\n"):
                    yield _parsed(path, number, line, parse, expected)
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read ({error.strerror})") from error


def _parsed(path: Path, number: int, line: str, parse: Callable[[Any], T], expected: str) -> T:
    try:
        return parse(json.loads(line))
    except Unexpected as error:
        raise UserError(f"{str(path)!r}: line {number} is not {expected}: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{str(path)!r}: line {number} is not {expected}") from error


def read_lines(path: Path, parse: Callable[[Any], T], expected: str) -> List[T]:
    """Return what `each_line` yields.

    Raises:
        UserError: as it does.
    """
    return list(each_line(path, parse, expected))
