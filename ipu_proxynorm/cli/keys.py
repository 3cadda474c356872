"""The keys of a configuration in words, for terminals of any width: names are never cut."""

from __future__ import annotations

import dataclasses
import fnmatch
import textwrap
from typing import Dict, List

from ipu_proxynorm.config import RunConfig, documentation
from ipu_proxynorm.config.keys import Key
from ipu_proxynorm.config.meant import meant
from ipu_proxynorm.errors import UserError

#: What the keys without a section are of.
_RUN = "the run"
#: Longer lines are hard to read, shorter ones hold no word.
_WIDEST, _NARROWEST = 100, 24


def keys_text(pattern: str, width: int) -> str:
    """Return the keys that ``pattern`` matches, by section, each with type, default and meaning.

    Args:
        pattern: part of a name or, where no name has it, of a meaning; with ``*``, ``?`` or
            ``[...]`` a whole name.
        width: columns to break meanings at.

    Raises:
        UserError: no key matches.
    """
    texts = {entry.name: entry.metadata["help"] for entry in dataclasses.fields(RunConfig)}
    sections: Dict[str, List[str]] = {}
    for key in matching(pattern):
        section = key.name.rpartition(".")[0]
        title = f"{section}: {texts[section]}" if section else _RUN
        sections.setdefault(title, []).append(described(key, width))
    return "\n\n".join("\n".join([title, *keys]) for title, keys in sections.items())


def matching(pattern: str) -> List[Key]:
    """Return the keys that a pattern of ``--keys`` matches.

    Raises:
        UserError: there is none.
    """
    keys, wanted = documentation(), pattern.strip().lower()
    if set(wanted) & set("*?["):
        found = [key for key in keys if fnmatch.fnmatchcase(key.name, wanted)]
    else:
        found = [key for key in keys if wanted in key.name]
        found = found or [key for key in keys if wanted.replace("_", " ") in key.text.lower()]
    if not found:
        close = meant(pattern, [key.name for key in keys])
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise UserError(f"--keys {pattern!r}: no key has it in its name or meaning{hint}")
    return found


def described(key: Key, width: int) -> str:
    """Return a key's lines: name, type and default, then its meaning."""
    default = "required" if key.default == "???" else f"default: {shown(key.default)}"
    indent = " " * 6
    lines = textwrap.wrap(
        key.text,
        min(max(width, _NARROWEST), _WIDEST),
        initial_indent=indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join([f"  {key.name}  ({key.type}; {default})", *lines])


def shown(default: object) -> str:
    """Return a default as a YAML file would have it."""
    if default is None or isinstance(default, bool):
        return {None: "null", True: "true", False: "false"}[default]
    return str(default)
