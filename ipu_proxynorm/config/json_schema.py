"""The JSON schema of a configuration file, from the same dataclasses that check it."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping, Optional, Tuple, get_type_hints

import yaml

from ipu_proxynorm.config.compiler_options import ENGINE_OPTIONS, SESSION
from ipu_proxynorm.config.keys import Limits, type_name
from ipu_proxynorm.config.load import DEFAULTS, NUMBER_OR_LIST
from ipu_proxynorm.config.schema import RunConfig, documentation

#: The newest draft that VS Code's YAML extension reads.
DRAFT = "http://json-schema.org/draft-07/schema#"
#: ``${model.norm}``, in the place of any value.
INTERPOLATION = {"type": "string", "pattern": r"^\$\{.+\}$"}
#: Sections of ``ipu`` with options by name: those that public sources name.
_OPTIONS = {"popart": SESSION, "engine": ENGINE_OPTIONS}
_TYPES: Dict[Any, Dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    # A key that is text takes what was typed: name: 007, norm: none, wandb: yes.
    str: {"type": ["string", "number", "boolean"]},
}


def json_schema() -> Dict[str, Any]:
    """Return the JSON schema of the files that `load` reads, as plain values.

    Which keys there are, their types, limits, choices, defaults and meanings. No key is required:
    a file may build on others, and the command line has the last word. Which values go together is
    checked by `load` alone.
    """
    texts = {key.name: key.text for key in documentation()}
    schema = _section(RunConfig, texts)
    bases = {"type": "array", "items": {"type": "string"}}
    schema["properties"][DEFAULTS] = {
        **bases,
        "description": "files that this one builds on, by their path from its folder",
    }
    title = "A run of ipu-proxynorm"
    return {"$schema": DRAFT, "title": title, **schema}


def _section(config: type, texts: Mapping[str, str], prefix: str = "") -> Dict[str, Any]:
    properties: Dict[str, Any] = {}
    hints = get_type_hints(config)
    for entry in dataclasses.fields(config):
        name, hint = f"{prefix}{entry.name}", hints[entry.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            inner = _section(hint, texts, f"{name}.")
            properties[entry.name] = {"description": entry.metadata["help"], **inner}
        else:
            properties[entry.name] = _key(prefix.rstrip("."), entry, hint, texts[name])
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _key(section: str, entry: Any, hint: Any, text: str) -> Dict[str, Any]:
    factory = entry.default_factory
    default = entry.default if factory is dataclasses.MISSING else factory()
    known: Dict[str, Any] = {"description": text if default != "???" else f"{text} (required)"}
    if default != "???":
        known["default"] = default
    limits: Limits = entry.metadata["limits"]
    if section == "ipu" and entry.name in _OPTIONS:
        values = [{"type": "object", "properties": {name: {} for name in _OPTIONS[entry.name]}}]
    else:
        values = _values(hint, limits)
    if (section, entry.name) in NUMBER_OR_LIST:
        values.append(_TYPES[float])
    return {**known, **_any_of(values)}


def _any_of(values: List[Dict[str, Any]]) -> Dict[str, Any]:
    """Return the schema of a value that meets one of several, or is an interpolation."""
    if len(values) == 1 and "string" in values[0].get("type", ()):
        return values[0]
    return {"anyOf": [*values, INTERPOLATION]}


def _values(hint: Any, limits: Optional[Limits] = None) -> List[Dict[str, Any]]:
    """Return the schemas of which a value must meet one."""
    arguments: Tuple[Any, ...] = getattr(hint, "__args__", None) or ()
    if type(None) in arguments:
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return [*_values(inner, limits), {"type": "null"}]
    if getattr(hint, "__origin__", None) in (list, List):
        return [{"type": "array", "items": _any_of(_values(arguments[0]))}]
    if hint not in _TYPES:
        raise TypeError(f"a key of type {type_name(hint)} has no JSON schema yet")
    values = dict(_TYPES[hint])
    if limits is None:
        return [values]
    if limits.choices is not None:
        # precision: 16.32 is a number to an editor, and the text 16.32 to us.
        read = [yaml.safe_load(choice) for choice in limits.choices]
        return [{"enum": list(dict.fromkeys([*limits.choices, *read]))}]
    bounds = {
        "minimum": limits.least,
        "exclusiveMinimum": limits.above,
        "maximum": limits.most,
        "multipleOf": limits.step if limits.step != 1 else None,
    }
    return [{**values, **{name: limit for name, limit in bounds.items() if limit is not None}}]
