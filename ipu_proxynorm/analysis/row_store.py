"""The rows of a comparison on disk: what a line must hold to be one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Tuple

from ipu_proxynorm.analysis.comparison import DIVERGED, DONE, UNDEFINED, Row
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.json_lines import Unexpected, append_line, read_lines
from ipu_proxynorm.run.state import is_number


class RowStore:
    """The rows of a comparison, one JSON line each, appended as runs end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> List[Row]:
        """Return the rows; the line of a write that was cut off does not count.

        Raises:
            UserError: a line is not a row.

        """
        expected = "a row of a comparison; remove the line, or choose another folder with --out"
        return read_lines(self.path, _row, expected)

    def add(self, row: Row) -> None:
        """Append a row.

        Raises:
            UserError: the file cannot be written.

        """
        try:
            append_line(self.path, dataclasses.asdict(row))
        except OSError as error:
            raise UserError(
                f"{str(self.path)!r} cannot be written ({error.strerror}); choose another folder "
                f"with --out"
            ) from error


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_is_text, value))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


def _is_share(value: Any) -> bool:
    return value is None or is_number(value, 0, 1)


def _is_known(value: Any) -> bool:
    return value is None or is_number(value, -math.inf)


def _is_curve(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(point, dict) and all(map(_is_known, point.values())) for point in value
    )


def _are_losses(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(
        isinstance(point, list) and len(point) == 2 and is_number(point[0]) and _is_known(point[1])
        for point in value
    )


#: What each field of a row is, and how it is recognised.
_EXPECTED: Dict[str, Tuple[Callable[[Any], bool], str]] = {
    "norm": (_is_text, "a text"),
    "micro_batch": (_is_count, "a number from 0 up"),
    "seed": (_is_count, "a number from 0 up"),
    "varied": (_are_texts, "a list of texts"),
    "own": (_are_texts, "a list of texts"),
    "proxy": (_is_text, "a text"),
    "fingerprint": (_is_text, "a text"),
    "status": ((DONE, DIVERGED, UNDEFINED).__contains__, "done, diverged or undefined"),
    "reason": (_is_text, "a text"),
    "accuracy": (_is_share, "a number from 0 to 1 or null"),
    "validation_loss": (_is_known, "a number or null"),
    "loss": (_is_known, "a number or null"),
    "seconds_per_step": (_is_known, "a number or null"),
    "curve": (_is_curve, "a list of names and numbers"),
    "losses": (_are_losses, "a list of pairs of numbers"),
}


def _row(values: Mapping[str, Any]) -> Row:
    for name, (rightly, expected) in _EXPECTED.items():
        if name in values and not rightly(values[name]):
            raise Unexpected(f"{name} is not {expected}")
    given = dict(values)
    for key in ("varied", "curve", "own"):
        given[key] = tuple(values.get(key, ()))
    given["losses"] = tuple((at, loss) for at, loss in values.get("losses", ()))
    return Row(**given)
