"""Trace points around parts of a program: without effect, as there is no profiler."""

from __future__ import annotations

from typing import Any, ContextManager

from .alias import names

# The SDK's profiling library, which is never there.
_pvti_available = False


class Channel:
    """A named channel of trace points.

    Args:
        name: the name of the channel.

    """

    def __init__(self, name: str) -> None:
        self.name = name

    def instrument(self, obj: Any, *methods: str) -> Any:
        """Trace the calls of an object's methods; returns the object."""
        for method in methods:
            getattr(obj, method)  # a name that does not exist is an AttributeError here too
        return obj

    def tracepoint(self, name: str) -> ContextManager[None]:
        """Return a context manager around what is to be traced."""
        return _DummyTracepoint()


class _DummyTracepoint:
    """What stands for a trace point where there is no profiler."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: Any) -> None:
        return None


__getattr__ = names.getter(__name__)
