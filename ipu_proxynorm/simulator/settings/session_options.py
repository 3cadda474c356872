"""The names and types that the compiler accepts for serialised options."""

from __future__ import annotations

from typing import Any, Callable, Dict, FrozenSet

from ipu_proxynorm import session_names as names

from .._errors import Error, createError
from .._logging import logger

_BOOL = names.BOOL | names.POPTORCH_BOOL
_INT = names.INT | names.POPTORCH_INT
_STRING = names.STRING | names.POPTORCH_STRING
_CONTAINER = names.LIST | names.MAPPING
_LOCATION = names.words("""
    location_activation location_weight location_optimizer location_accumulator
""")
_LOCATION_KEYS = names.words("""
    minElementsForOffChip minElementsForReplicatedTensorSharding onChip
    useReplicatedTensorSharding useIOTilesToLoad useIOTilesToStore
""")

# Used on the Python side only.
_SKIPPED = ("patterns_level", "anchored_tensors", "compilation_progress_bar_fn")


def _error(message: str) -> Error:
    return createError(message, layer="poptorch_cpp_error")


def _requireKnown(name: str, known: FrozenSet[str], kind: str) -> None:
    if name not in known:
        raise _error(f"Unknown {kind} option {name}")


def _requireText(value: Any) -> None:
    """Refuse what PopTorch turns into no text: python/poptorch.cpp:253-263."""
    if not isinstance(value, (str, int)):
        raise _error(f"Don't know how to convert type {type(value)} to string")


def _requireInRange(name: str, value: int) -> None:
    kind, count = names.ENUMERATIONS.get(name, ("", 0))
    if kind and not 0 <= int(value) < count:
        raise _error(
            f"Value for {kind} out of range: {name} is {int(value)}, expected 0 to {count - 1}"
        )


def _checkDict(name: str, value: Dict[Any, Any], options: Dict[str, Any]) -> None:
    if name == "available_memory_proportion":
        return
    if name == "patterns":
        if "patterns_level" not in options:
            raise _error(
                "PopART option 'patterns' should not be set without first setting 'patterns_level'."
            )
    elif name.startswith("location_"):
        if name not in _LOCATION:
            raise _error(f"Unknown tensor location {name}")
        for key in value:
            if key not in _LOCATION_KEYS:
                raise _error(f"Unknown option '{key}' for tensor location {name}")
    elif value:
        _requireKnown(name, _CONTAINER, "map")


def validate(options: Dict[str, Any]) -> None:
    """Refuse unknown options and types, and log the others.

    Raises:
        Error: an option's name is unknown for a value of its type.

    """
    # bool before int: a Python bool is an int too.
    scalar_kinds: Dict[type, Any] = {
        bool: (_BOOL, "bool"),
        int: (_INT, "uint64"),
        float: (names.FLOAT, "floating point"),
        str: (_STRING, "string"),
    }
    log: Callable[..., None] = logger.debug
    for name, value in options.items():
        if name in _SKIPPED:
            continue
        kind = next((kind for cls, kind in scalar_kinds.items() if isinstance(value, cls)), None)
        if kind is not None:
            _requireKnown(name, *kind)
            if kind[1] == "uint64":
                _requireInRange(name, value)
            log("poptorch.Options set %s to value %s", name, _shown(value))
        elif isinstance(value, (set, list, tuple)):
            _requireKnown(name, _CONTAINER, "set / vector")
            for element in value:
                _requireText(element)
                log("poptorch.Options added %s to %s", element, name)
        elif isinstance(value, dict):
            _checkDict(name, value, options)
            for key, element in value.items():
                if name in _CONTAINER:
                    _requireText(element)
                log("poptorch.Options set %s[%s] to %s", name, key, element)
        else:
            raise _error(f"Unknown value type {type(value).__name__} for option {name}")


def _shown(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return int(value) if isinstance(value, int) else value
