"""Values as they were typed: a key that is text takes ``1e5``, ``007`` and ``yes`` as such."""

from __future__ import annotations

import functools
import os
import re
from typing import Any, Dict, FrozenSet, List, Optional

import yaml
from omegaconf import OmegaConf

from ipu_proxynorm.config.schema import RunConfig, documentation

_TEXT, _NULL = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
#: Keys that are paths: ``~`` in them is the user's home.
PATHS = ("data.path", "ipu.executable_cache", "runs", "training.init_from")


@functools.lru_cache(maxsize=None)
def _keys(*types: str) -> FrozenSet[str]:
    return frozenset(key.name for key in documentation() if key.type in types)


def typed(text: str) -> str:
    """Return YAML in which the plain values of keys that are text are quoted.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return text
    quoted = [_quote(value, name) for name, value in _values(root, "")]
    return str(yaml.serialize(root, allow_unicode=True)) if any(quoted) else text


def _values(node: yaml.MappingNode, prefix: str) -> List[Any]:
    found: List[Any] = []
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        inner = isinstance(value, yaml.MappingNode)
        found += _values(value, f"{name}.") if inner else [(name, value)]
    return found


def _quote(node: yaml.Node, name: str) -> bool:
    """Make a value text where its key is; say whether it was another."""
    if isinstance(node, yaml.SequenceNode) and name in _keys("list of str"):
        return sum(_quote_one(item, optional=False) for item in node.value) > 0
    optional = name in _keys("str or null")
    if isinstance(node, yaml.ScalarNode) and (optional or name in _keys("str")):
        return _quote_one(node, optional)
    return False


def _quote_one(node: yaml.Node, optional: bool) -> bool:
    plain = isinstance(node, yaml.ScalarNode) and node.style is None
    empty = node.tag == _NULL and (optional or not node.value)
    if not plain or empty:
        return False
    node.tag, node.style = _TEXT, "'"
    return True


def override(text: str) -> Any:
    """Return the values that ``key=value`` of a command line sets.

    Of a key that is text all behind ``=`` is the value, quotes around it aside.

    Raises:
        yaml.YAMLError: the value is no YAML.
        omegaconf.errors.OmegaConfBaseException: what is in ``${...}`` is no name.
    """
    name, _, value = text.partition("=")
    name = name.strip()
    if name in _keys("str", "str or null"):
        return OmegaConf.create(_nested(name, _typed_value(value, name in _keys("str or null"))))
    if name in _keys("list of str"):
        node = yaml.compose(value, Loader=yaml.SafeLoader)
        if node is not None and _quote(node, name):
            values = yaml.safe_load(yaml.serialize(node, allow_unicode=True))
            return OmegaConf.create(_nested(name, values))
    return OmegaConf.from_dotlist([text])


def _typed_value(value: str, optional: bool) -> Optional[str]:
    bare = value.strip()
    if optional and bare in ("", "~", "null", "Null", "NULL"):
        return None
    if len(bare) >= 2 and bare[0] == bare[-1] and bare[0] in "'\"":
        unquoted = yaml.safe_load(bare)
        return unquoted if isinstance(unquoted, str) else value
    return value


def _nested(name: str, value: Any) -> Dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return dict(value)


def expand(config: RunConfig) -> None:
    """Put the user's home in the place of ``~`` at the beginning of paths."""
    for name in PATHS:
        section, _, last = name.rpartition(".")
        holder: Any = getattr(config, section) if section else config
        value = getattr(holder, last)
        if value is not None:
            provider, path = "", value
            if name == "training.init_from" and re.match(r"\w+:~", value):
                provider, path = re.split("(?<=:)", value, maxsplit=1)
            setattr(holder, last, provider + os.path.expanduser(path))
