"""``${...}`` in values: which lead nowhere, where they stand, and what the environment gave."""

from __future__ import annotations

import re
from typing import Any, Collection, Dict, List, Mapping, Sequence, Tuple

import omegaconf
from omegaconf import DictConfig, OmegaConf

from ipu_proxynorm.config.schema import Key
from ipu_proxynorm.errors import UserError

_VARIABLE = re.compile(r"\$\{\s*oc\.env\s*:")


def resolve(
    merged: DictConfig,
    layers: Sequence[Tuple[DictConfig, str]],
    keys: Mapping[str, Key],
    unneeded: Collection[str],
    source: str,
) -> Dict[str, Any]:
    """Put values in the place of ``${...}``; return what was written where a variable was asked.

    Args:
        merged: the values of a run; changed.
        layers: the values that it was merged from, later ones over earlier ones, each with the
            name of where it stands.
        keys: of a run, by name.
        unneeded: keys that may be left at their defaults where what they ask for is not there.
        source: what is to blame where no layer is.

    Raises:
        UserError: a value that is needed leads nowhere.
    """
    given = OmegaConf.to_container(merged, resolve=False)
    written = {name: value for name in keys for value in _at(given, name) if "${" in str(value)}
    if not written:
        return {}
    failing = {name: error for name in written for error in _failure(merged, name)}
    for name in failing.keys() & set(unneeded):
        OmegaConf.update(merged, name, keys[name].default)
        del failing[name]
    if failing:
        name = _root(failing, written)
        layer = next((where for values, where in reversed(layers) if _gives(values, name)), source)
        raise unresolved(layer, failing[name], name)
    OmegaConf.resolve(merged)
    return {name: value for name, value in written.items() if _VARIABLE.search(str(value))}


def _at(values: Any, name: str) -> List[Any]:
    """Return what stands at a dotted name; [] where nothing does."""
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return []
        values = values[part]
    return [values]


def _gives(layer: DictConfig, name: str) -> bool:
    return bool(_at(OmegaConf.to_container(layer, resolve=False), name))


def _failure(merged: DictConfig, name: str) -> List[Exception]:
    """Return the error of a key whose ``${...}`` leads nowhere; [] where there is none."""
    try:
        value = OmegaConf.select(merged, name)
        if OmegaConf.is_config(value):
            OmegaConf.to_container(value, resolve=True)
    except omegaconf.errors.OmegaConfBaseException as error:
        return [error]
    return []


def _root(failing: Mapping[str, Exception], written: Mapping[str, Any]) -> str:
    """Return the key that fails by itself, rather than through another one."""
    for name in failing:
        asked = re.findall(r"\$\{([\w.]+)\}", str(written[name]))
        if not any(other in failing for other in asked):
            return name
    return next(iter(failing))


def unresolved(source: str, error: Exception, key: str = "") -> UserError:
    """Return the error for a ``${...}`` in a value that leads nowhere, or is none."""
    # What follows is of OmegaConf's own objects.
    text = " ".join(str(error).partition("full_key:")[0].split())
    named = f"{source}: {key}{': ' * bool(key)}"
    unset = re.search(r"Environment variable '(.*?)' not found", text)
    if unset:
        return UserError(
            f"{named}the environment variable {unset[1]} is not set; "
            f"set it, or give a value for where it is not: ${{oc.env:{unset[1]},VALUE}}"
        )
    return UserError(
        f"{named}{text}; expected ${{KEY}} with another key, e.g. ${{model.norm}}, or no $"
    )
