"""Functions that run before and after every compilation."""

from __future__ import annotations

import collections
from typing import Any, Callable, Dict

from torch.utils.hooks import RemovableHandle

_before: Dict[int, Callable[[], Any]] = collections.OrderedDict()
_after: Dict[int, Callable[[], Any]] = collections.OrderedDict()


def _registerHook(hooks: Dict[int, Callable[[], Any]], hook: Callable[[], Any]) -> RemovableHandle:
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def registerPreCompileHook(hook: Callable[[], Any]) -> RemovableHandle:
    """Call ``hook()`` before every compilation.

    Raises:
        RuntimeError: it cannot be called.

    """
    if not callable(hook):
        raise RuntimeError("Pre-compile hook must be callable")
    return _registerHook(_before, hook)


def registerPostCompileHook(hook: Callable[[], Any]) -> RemovableHandle:
    """Call ``hook()`` after every compilation.

    Raises:
        RuntimeError: it cannot be called.

    """
    if not callable(hook):
        raise RuntimeError("Post-compile hook must be callable")
    return _registerHook(_after, hook)


def before_compiling() -> None:
    """Call the hooks, in the order of their registration."""
    for hook in list(_before.values()):
        hook()


def after_compiling() -> None:
    """Call the hooks, in the order of their registration."""
    for hook in list(_after.values()):
        hook()
