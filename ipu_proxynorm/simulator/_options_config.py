"""Options from a text file of setter calls, one call a line."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .options import Options


class ConfigFileError(Exception):
    """A line of an options file that is not a valid call."""


def parseAndSetOptions(options: Options, filepath: str) -> None:
    """Run each line of the file as ``options.<line>``; blank lines and ``#`` comments are skipped.

    Raises:
        ConfigFileError: a line is not Python; the message names line and file.

    """
    with open(filepath, encoding="utf-8") as config:
        stripped = [line.strip() for line in config]
    calls = ["options." + line for line in stripped if line and not line.startswith("#")]
    # Lines may name the package's enums and strategies as a script would.
    names = {"poptorch": sys.modules[__package__], "options": options}
    try:
        exec(compile("\n".join(calls), filepath, "exec"), {}, names)
    except SyntaxError as err:
        raise ConfigFileError(
            f"{type(err).__name__} at line {err.lineno} of {os.path.basename(filepath)}: "
            f"{err.args[0]}\n> {err.text}"
        ) from err
