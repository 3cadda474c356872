"""What a key of a configuration is: a dataclass field with a sentence, choices and limits."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any, Collection, Dict, Iterator, List, Mapping, Optional, Tuple, get_type_hints

from ipu_proxynorm.errors import UserError, unknown_name


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a key's value must be, beyond its type; null is let through where the type has it.

    Attributes:
        choices: the names that it may be, where it is a name; of a mapping, each with what to know
            of it. Held, not copied: what is registered later counts.
        least: the smallest number.
        above: the number that it must exceed.
        most: the largest number.
        step: what the number must be a multiple of.
    """

    choices: Optional[Collection[str]] = None
    least: Optional[float] = None
    above: Optional[float] = None
    most: Optional[float] = None
    step: int = 1

    def refuse(self, name: str, value: Any) -> None:
        """Refuse a value of the key ``name`` that is beyond them.

        Raises:
            UserError: names the key, its value and what was expected.
        """
        if self.choices is not None and value not in self.choices:
            raise unknown_name(f"{name}:", value, list(self.choices))
        bounded = any(limit is not None for limit in (self.least, self.above, self.most))
        if bounded and not self._holds(value):
            raise UserError(f"{name}={value}: expected {self._numbers()}")

    def _holds(self, value: float) -> bool:
        return (
            abs(value) <= sys.float_info.max  # no integer beyond it, either
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.step == 1 or value % self.step == 0)
        )

    def _numbers(self) -> str:
        if self.least is not None and self.most is not None:
            which = "a number" if self.step == 1 else f"a multiple of {self.step}"
            return f"{which} from {self.least} to {self.most}"
        if self.least is not None:
            return f"a finite number from {self.least} up"
        return f"a finite number above {self.above}"

    def _notes(self) -> Iterator[Tuple[str, str]]:
        """Yield each choice with what to know of it."""
        for name in self.choices or ():
            value = self.choices[name] if isinstance(self.choices, Mapping) else ""
            yield name, value if isinstance(value, str) else getattr(value, "note", "")

    def listed(self) -> str:
        """Return the choices in words: ``a, b (what to know) or c``; "" where there are none."""
        if self.choices is None:
            return ""
        names = [f"{name} ({note})" if note else name for name, note in self._notes()]
        return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def key(default: Any, text: str, **limits: Any) -> Any:
    """Return a dataclass field with its documentation and its `Limits`.

    Lists and mappings are copied for each instance. The documentation ends in the choices, where
    there are any.
    """
    metadata = {"help": text, "limits": Limits(**limits)}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(config: type, text: str) -> Any:
    """Return a dataclass field that holds another dataclass of keys."""
    return dataclasses.field(default_factory=config, metadata={"help": text, "limits": Limits()})


@dataclasses.dataclass(frozen=True)
class Key:
    """One documented key: dotted name, type as a user writes it, default, sentence."""

    name: str
    type: str
    default: Any
    text: str


def type_name(hint: Any) -> str:
    """Return a type hint in a user's words, e.g. ``int or null``."""
    arguments = getattr(hint, "__args__", None)
    if getattr(hint, "__origin__", None) is list and arguments:
        return f"list of {type_name(arguments[0])}"
    if getattr(hint, "__origin__", None) is dict:
        return "mapping"
    if arguments and type(None) in arguments:
        return f"{type_name(arguments[0])} or null"
    return str(getattr(hint, "__name__", hint))


@functools.lru_cache(maxsize=None)
def _hints(config: type) -> Dict[str, Any]:
    return get_type_hints(config)


def walk(config: type, prefix: str = "") -> Iterator[Tuple[str, Any, Any]]:
    """Yield (dotted name, type hint, dataclass field) of every key, sections descended into."""
    hints = _hints(config)
    for entry in dataclasses.fields(config):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            yield from walk(hint, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", hint, entry


def described(config: type) -> List[Key]:
    """Return every key below a dataclass of keys, with its type, default and meaning."""
    keys = []
    for name, hint, entry in walk(config):
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        listed = entry.metadata["limits"].listed()
        text = entry.metadata["help"] + (f": {listed}" if listed else "")
        keys.append(Key(name, type_name(hint), default, text))
    return keys
