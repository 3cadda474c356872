"""YAML text and dotted overrides into a checked :class:`RunConfig`, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence, Union, cast

import omegaconf
import yaml
from omegaconf import DictConfig, OmegaConf

from ipu_proxynorm.config.check import check
from ipu_proxynorm.config.schema import RunConfig, documentation
from ipu_proxynorm.errors import UserError, nearest


def load(path: Union[str, Path], overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply ``key=value`` overrides (dotted keys, YAML values).

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value is not allowed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        found = sorted(str(p) for p in Path("configs").rglob("*.yaml"))
        listed = ", ".join(nearest(str(path), found) or found[:8]) or "none in configs/"
        raise UserError(
            f"CONFIG {str(path)!r} cannot be read ({error.strerror}): expected a YAML file, "
            f"e.g. {listed}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"CONFIG {str(path)!r}: expected UTF-8 text ({error})") from error
    return loads(text, overrides, source=str(path))


def loads(text: str, overrides: Sequence[str] = (), source: str = "config") -> RunConfig:
    """Return the checked configuration of YAML ``text``; see :func:`load`."""
    try:
        layers = [OmegaConf.create(text)]
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(layers[0], DictConfig):
        raise UserError(f"{source}: expected 'key: value' lines, got {text[:40]!r}")
    for override in overrides:
        if not override.partition("=")[0].strip() or "=" not in override:
            raise UserError(f"override {override!r}: expected key=value, e.g. training.epochs=1")
        try:
            layers.append(OmegaConf.from_dotlist([override]))
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not valid YAML") from error
    merged = OmegaConf.structured(RunConfig)
    for layer in layers:
        merged = _merge(merged, layer, source)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        texts = {key.name: key.text for key in documentation()}
        raise UserError(f"{source}: {missing[0]} is not set: expected {texts[missing[0]]}")
    config = cast(RunConfig, OmegaConf.to_object(merged))
    check(config)
    return config


def dump(config: RunConfig) -> str:
    """Return the configuration as YAML that :func:`loads` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _merge(base: Any, layer: Any, source: str) -> Any:
    """Merge one layer of values; OmegaConf's errors become sentences that name the key."""
    keys = {key.name: key for key in documentation()}
    for key in keys:
        section = key.partition(".")[0]
        if section != key and not isinstance(layer.get(section, base[section]), DictConfig):
            raise UserError(
                f"{source}: {section}={layer[section]!r}: expected keys below it, e.g. {key}"
            )
    try:
        return OmegaConf.merge(base, layer)
    except omegaconf.errors.OmegaConfBaseException as error:
        name = str(error.full_key)
        given = OmegaConf.select(layer, name, throw_on_resolution_failure=False)
        if name in keys:
            raise UserError(
                f"{source}: {name}={given!r}: expected {keys[name].type} ({keys[name].text})"
            ) from error
        close = nearest(name, keys) or [
            key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]
        ]
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"{source}: key {name!r} (value {given!r}) is unknown{hint} "
            f"(run_ipu.py train --keys lists every key)"
        ) from error
