"""Files of one JSON value a line, appended while a program runs that may be killed in a write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable, List, TypeVar

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


def read_lines(path: Path, parse: Callable[[Any], T], expected: str) -> List[T]:
    """Return each line, parsed, whose write was not cut off; none if there is no file.

    Args:
        path: the file.
        parse: makes of a JSON value what is returned.
        expected: what a line should be, and what to do where it is not, for the error.

    Raises:
        UserError: ``parse`` or the JSON reader finds a line wrong.

    """

    def parsed(number: int, line: str) -> T:
        try:
            return parse(json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{str(path)!r}: line {number} is not {expected}") from error

    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    return [parsed(number, line) for number, line in enumerate(lines, 1) if line.endswith("\n")]
