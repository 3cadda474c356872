"""Options from text: a file of setter calls, one call a line, or JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from . import enums
from .alias import names


class ConfigFileError(Exception):
    """A line of an options file that is not a valid call."""


def _parseEnum(value: Any) -> Any:
    """``"OutputMode.All"`` as the enum's member; anything else unchanged."""
    if not isinstance(value, str) or value.count(".") != 1:
        return value
    enum_name, member = value.split(".")
    return getattr(getattr(enums, enum_name, None), member, value)


def setFromJson(options: Any, string: str) -> None:
    """Call setters of ``poptorch.Options`` by their dotted names, with the values as arguments."""
    for option, value in json.loads(string).items():
        setter = options
        for attribute in option.split("."):
            setter = getattr(setter, attribute)
        arguments = value if isinstance(value, list) else [_parseEnum(value)]
        setter(*arguments)


def parseAndSetOptions(options: Any, filepath: str) -> None:
    """Run each line of a file as ``options.<line>``; blank lines and ``#`` comments are skipped.

    Args:
        options: ``poptorch.Options``.
        filepath: the path of the file.

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


__getattr__ = names.getter(__name__)
