"""YAML files, the files they build on and dotted overrides into a checked `RunConfig`, and back."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Collection, Dict, FrozenSet, List, Mapping, Sequence, Tuple, Union, cast

import omegaconf
import yaml
from omegaconf import DictConfig, OmegaConf

from ipu_proxynorm import session_names
from ipu_proxynorm.config.check import check
from ipu_proxynorm.config.compiler_options import flattened
from ipu_proxynorm.config.interpolation import resolve, unresolved
from ipu_proxynorm.config.meant import meant
from ipu_proxynorm.config.schema import Key, RunConfig, documentation
from ipu_proxynorm.config.shipped import located, recipe_names
from ipu_proxynorm.config.text import expand, typed
from ipu_proxynorm.config.text import override as values_of
from ipu_proxynorm.errors import UserError, nearest

#: Key of a file, no key of a run: the files that it builds on.
DEFAULTS = "defaults"
#: Keys of where a run's images, weights and records are: a program that trains nothing can do
#: without the environment variables that they ask for.
UNNEEDED_WITHOUT_A_RUN = (
    "data.path",
    "ipu.executable_cache",
    "runs",
    "training.init_from",
    "training.wandb",
)
#: What is to blame for a value, where no file is.
COMMAND_LINE = "command line"
#: Keys that are lists with one value a stage; a number stands for a list of it alone.
NUMBER_OR_LIST = (("ipu", "available_memory_proportion"),)
#: Keys that are mappings of options by name, and the options that are mappings themselves.
BY_NAME: Tuple[Tuple[str, str, FrozenSet[str]], ...] = (
    ("ipu", "popart", session_names.MAPPING),
    ("ipu", "engine", frozenset()),
)


def load(
    path: Union[str, Path], overrides: Sequence[str] = (), unneeded: Collection[str] = ()
) -> RunConfig:
    """Read a YAML file and apply ``key=value`` overrides (dotted keys, YAML values).

    A file may build on others: ``defaults: [base/a.yaml, base/b.yaml]``, paths from its own folder.
    Their values are taken in that order, later ones over earlier ones, the file's own last; lists
    are replaced, not joined. A file that is not there may be the name of a shipped recipe, see
    `shipped.located`.

    Args:
        path: the file.
        overrides: of a command line.
        unneeded: keys that keep their defaults where the environment variables that they ask for
            are not set, see `UNNEEDED_WITHOUT_A_RUN`.

    Raises:
        UserError: a file is missing or not YAML, builds on itself, a key is unknown, or a value is
            not allowed.
    """
    return _build(_layers(located(path)), overrides, str(path), unneeded)


def loads(text: str, overrides: Sequence[str] = (), source: str = "config") -> RunConfig:
    """Return the checked configuration of YAML ``text``, which builds on no file; see `load`."""
    layer = _parse(text, source)
    if DEFAULTS in layer:
        raise UserError(
            f"{source}: {DEFAULTS}={_given(layer)}: only a file can build on others; write the "
            f"values out, or load a file"
        )
    return _build([(layer, source)], overrides, source)


def _read(path: Path, wanted_by: str) -> str:
    """Return the text of a file that the command line or another file asks for."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        if wanted_by:
            near = sorted(p.name for p in path.parent.glob("*.yaml"))
            listed = f"there are {', '.join(near)}" if near else "there is no YAML file at all"
            raise UserError(
                f"{wanted_by}: {DEFAULTS}: {str(path)!r} cannot be read ({error.strerror}): "
                f"expected YAML files by their path from this file's folder; in "
                f"{str(path.parent)!r} {listed}"
            ) from error
        found = recipe_names()
        listed = ", ".join(nearest(str(path), found) or found[:8])
        raise UserError(
            f"CONFIG {str(path)!r} cannot be read ({error.strerror}): expected a YAML file, or a "
            f"shipped recipe such as {listed}"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"CONFIG {str(path)!r}: expected UTF-8 text ({error})") from error


def _parse(text: str, source: str) -> DictConfig:
    layer: Any = None
    try:
        with contextlib.suppress(AssertionError):  # OmegaConf's, where there is one value alone
            layer = OmegaConf.create(typed(text))
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    except omegaconf.errors.OmegaConfBaseException as error:
        raise unresolved(source, error) from error
    if not isinstance(layer, DictConfig):
        raise UserError(f"{source}: expected 'key: value' lines, got {text[:40]!r}")
    for key in layer:
        if not isinstance(key, str):  # YAML reads on, off, yes and no as such
            raise UserError(f"{source}: key {key!r} is unknown (train --keys lists all)")
    return layer


def _refuse_shapes(layer: DictConfig, keys: Mapping[str, Key], source: str) -> None:
    """Refuse what is no section where one is expected, and a map where a list is."""
    given = cast(Dict[str, Any], OmegaConf.to_container(layer))
    for name, key in keys.items():
        section, _, last = name.rpartition(".")
        value: Any = given
        for part in section.split(".") if section else ():
            value = value.get(part, {})
            if not isinstance(value, dict):
                raise UserError(
                    f"{source}: {section}={value!r}: expected keys below it, e.g. {name}"
                )
        if isinstance(value.get(last), dict) and key.type.startswith("list of "):
            raise UserError(
                f"{source}: {name}={value[last]!r}: expected {key.type}, no keys below it "
                f"({key.text})"
            )


def _given(layer: DictConfig) -> Any:
    value = OmegaConf.to_container(layer)
    assert isinstance(value, dict)
    return value[DEFAULTS]


def _layers(path: Path, chain: Tuple[Path, ...] = ()) -> List[Tuple[DictConfig, str]]:
    """Return the values of a file's bases, in order, and last its own; each with its file's name.

    ``chain`` are the files that lead to this one.
    """
    layer = _parse(_read(path, str(chain[-1]) if chain else ""), str(path))
    bases = _given(layer) if DEFAULTS in layer else []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {DEFAULTS}={bases!r}: expected a list of files, e.g. [base.yaml]")
    found: List[Tuple[DictConfig, str]] = []
    for base in bases:
        file = Path(os.path.normpath(path.parent / base))
        if any(file.resolve() == other.resolve() for other in (*chain, path)):
            steps = " -> ".join(map(str, (*chain, path, file)))
            raise UserError(f"{path}: {DEFAULTS}: {base!r} leads back to itself: {steps}")
        found += _layers(file, (*chain, path))
    own = OmegaConf.masked_copy(layer, [str(key) for key in layer if key != DEFAULTS])
    return [*found, (own, str(path))]


def _build(
    layers: Sequence[Tuple[DictConfig, str]],
    overrides: Sequence[str],
    source: str,
    unneeded: Collection[str] = (),
) -> RunConfig:
    """Return the checked configuration of values, later ones over earlier ones."""
    layers = list(layers)
    merged = OmegaConf.structured(RunConfig)
    for layer, name in layers:
        merged = _merge(merged, layer, name)
    for override in overrides:
        if not override.partition("=")[0].strip() or "=" not in override:
            raise UserError(f"override {override!r}: expected key=value, e.g. training.epochs=1")
        try:
            layer = values_of(override)
        except yaml.YAMLError as error:
            raise UserError(f"override {override!r}: the value is not valid YAML") from error
        except omegaconf.errors.OmegaConfBaseException as error:
            raise unresolved(f"override {override!r}", error) from error
        merged = _merge(merged, layer, COMMAND_LINE)
        layers.append((layer, COMMAND_LINE))
    keys = {key.name: key for key in documentation()}
    environment = resolve(merged, layers, keys, unneeded, source)
    missing = sorted(OmegaConf.missing_keys(merged))
    if missing:
        first, *others = missing
        more = "; nor are " * bool(others) + ", ".join(f"{n} ({keys[n].text})" for n in others)
        raise UserError(f"{source}: {first} is not set: expected {keys[first].text}{more}")
    config = cast(RunConfig, OmegaConf.to_object(merged))
    config.environment = environment
    for options in (config.ipu.popart, config.ipu.engine):
        for name in [name for name, value in options.items() if value is None]:
            del options[name]
    expand(config)
    check(config)
    return config


def dump(config: RunConfig, as_written: bool = False) -> str:
    """Return the configuration as YAML that :func:`loads` reads back to an equal one.

    What came from environment variables is said above it.

    Args:
        config: the configuration.
        as_written: keep ``${oc.env:...}`` in the place of what it gave.
    """
    values = OmegaConf.structured(config)
    if as_written:
        for name, value in config.environment.items():
            OmegaConf.update(values, name, value)
        return OmegaConf.to_yaml(values)
    taken = [f"# {name}: {json.dumps(value)}\n" for name, value in config.environment.items()]
    head = "# from the environment:\n" if taken else ""
    return f"{head}{''.join(taken)}{OmegaConf.to_yaml(values)}"


def _selected(layer: Any, name: str) -> Any:
    """Return the value of a key; None: it is not given, or a ``${...}`` that leads nowhere yet."""
    return OmegaConf.select(layer, name, throw_on_resolution_failure=False)


def _merge(base: Any, layer: Any, source: str) -> Any:
    """Merge one layer of values; OmegaConf's errors become sentences that name the key."""
    keys = {key.name: key for key in documentation()}
    _refuse_shapes(layer, keys, source)
    for name, last in NUMBER_OR_LIST:
        value = _selected(layer, f"{name}.{last}")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            layer = OmegaConf.merge(layer, {name: {last: [value]}})
    for name, last, known in BY_NAME:
        value = _selected(layer, f"{name}.{last}")
        if isinstance(value, DictConfig):
            written = cast(Dict[str, Any], OmegaConf.to_container(layer))
            written[name][last] = flattened(written[name][last], known)
            layer = OmegaConf.create(written)
    try:
        return OmegaConf.merge(base, layer)
    except OverflowError as error:
        values = {name: _selected(layer, name) for name in keys}
        large = [
            name
            for name, value in values.items()
            if isinstance(value, int) and abs(value) > sys.float_info.max
        ]
        raise UserError(
            f"{source}: {', '.join(large) or 'a value'} is larger than any number that a float "
            f"holds; expected up to {sys.float_info.max:.1e}"
        ) from error
    except omegaconf.errors.OmegaConfBaseException as error:
        name = str(error.full_key)
        given = _selected(layer, name)
        if name in keys:
            wanted = keys[name].type
            one = wanted.startswith("list of ") and isinstance(given, (str, int, float))
            example = f", e.g. [{given}]" if one else ""
            raise UserError(
                f"{source}: {name}={given!r}: expected {wanted}{example} ({keys[name].text})"
            ) from error
        while isinstance(given, DictConfig) and len(given):  # a section's name is wrong
            inner, given = next(iter(given.items_ex(resolve=False)))
            name += f".{inner!s}"
        close = meant(name, keys)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"{source}: key {name!r} (value {given!r}) is unknown{hint} "
            f"(train --keys lists every key)"
        ) from error
