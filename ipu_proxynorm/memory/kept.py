"""Keeps what is computed from a capture for as long as the capture itself is kept."""

from __future__ import annotations

import functools
from typing import Any, Callable, TypeVar

from ipu_proxynorm.memory.graph import Capture

Result = TypeVar("Result")


def kept(function: Callable[..., Result]) -> Callable[..., Result]:
    """Compute ``function`` of a capture and of hashable values once, and keep the result with it.

    A planner asks for the same of one capture again and again: for another place of the optimiser
    state, another memory proportion. Results are shared, so nobody may change them.
    """
    # Not the function itself: what has been computed is pickled with the capture.
    name = f"{function.__module__}.{function.__qualname__}"

    @functools.wraps(function)
    def computed(capture: Capture, *values: Any) -> Result:
        # Where functools.cached_property keeps its own; no other capture is made with it.
        results = capture.__dict__.setdefault("_kept", {})
        key = (name, *values)
        if key not in results:
            results[key] = function(capture, *values)
        result: Result = results[key]
        return result

    return computed
