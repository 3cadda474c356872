"""Convolutions that the compiler may run side by side; their results do not depend on it."""

from __future__ import annotations

from typing import Any, Optional, Sequence, Tuple, Union

import torch

from .. import enums
from ..trace import refusals, tracing
from ..trace.origins import Origin


def _per_conv(name: str, value: Any, kind: type) -> Optional[Sequence[Any]]:
    if value is None:
        return None
    if isinstance(value, kind):
        return (value,)
    valid = isinstance(value, (list, tuple)) and len(value) > 0
    if valid and all(isinstance(element, kind) for element in value):
        return value
    raise AssertionError(f"Invalid {name}!")


class MultiConv:
    """A context manager: the convolutions inside may run in parallel."""

    def __init__(self) -> None:
        self._available_memory_proportions: Optional[Sequence[float]] = None
        self._partials_types: Optional[Sequence[int]] = None
        self._plan_type: Optional[enums.MultiConvPlanType] = None
        self._per_conv_reserved_tiles: Optional[int] = None
        self._cycle_back_off: Optional[float] = None
        self._enable_conv_ditherings: Optional[Sequence[bool]] = None

    def availableMemoryProportions(self, value: Union[float, Sequence[float]]) -> MultiConv:
        """Set the share of SRAM for temporary data, one for all convolutions or one for each."""
        self._available_memory_proportions = _per_conv("available memory proportion", value, float)
        return self

    def partialsTypes(self, value: Union[torch.dtype, Sequence[torch.dtype]]) -> MultiConv:
        """Set the type of partial sums, one for all convolutions or one for each."""
        types = value if isinstance(value, (list, tuple)) else (value,)
        codes = {torch.float32: 0, torch.float16: 1}
        if any(dtype not in codes for dtype in types):
            raise ValueError("Invalid partials types. Expecting torch.float or torch.half")
        self._partials_types = [codes[dtype] for dtype in types]
        return self

    def enableConvDithering(self, value: Union[bool, Sequence[bool], None]) -> MultiConv:
        """Set whether tiles are assigned at random, one for all convolutions or one for each."""
        values: Tuple[Any, ...] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if value is not None and not all(isinstance(element, bool) for element in values):
            raise ValueError("value must be bool or list of bools")
        self._enable_conv_ditherings = None if value is None else values
        return self

    def planType(self, value: Optional[enums.MultiConvPlanType]) -> MultiConv:
        """Set how the convolutions are run."""
        if value is not None and not isinstance(value, enums.MultiConvPlanType):
            raise AssertionError("Invalid plan type!")
        self._plan_type = value
        return self

    def perConvReservedTiles(self, value: int) -> MultiConv:
        """Set how many tiles each convolution gets at least."""
        assert isinstance(value, int)
        self._per_conv_reserved_tiles = value
        return self

    def cycleBackOff(self, value: float) -> MultiConv:
        """Set the share of cycles that may be given up, between 0 and 1."""
        assert isinstance(value, float)
        self._cycle_back_off = value
        return self

    def __enter__(self) -> None:
        trace = tracing.current()
        if trace is None:
            return
        if trace.multi_conv_start is not None:
            raise refusals.refuse(
                "Nested poptorch.MultiConv is not supported", trace.recorder.where()
            )
        trace.multi_conv_start = trace.convolutions()

    def __exit__(self, kind: Any, *_: Any) -> None:
        trace = tracing.current()
        if trace is None or trace.multi_conv_start is None:
            return
        convolutions = trace.convolutions() - trace.multi_conv_start
        trace.multi_conv_start = None
        if kind is None:
            self._check(convolutions, trace.recorder.where())

    def _check(self, convolutions: int, origin: Origin) -> None:
        if convolutions == 0:
            raise refusals.refuse(
                "Unexpected end_multi_conv: there is no convolution inside poptorch.MultiConv",
                origin,
            )
        for name, values in (
            ("availableMemoryProportions", self._available_memory_proportions),
            ("partialsTypes", self._partials_types),
            ("enableConvDithering", self._enable_conv_ditherings),
        ):
            if values is not None and len(values) not in (1, convolutions):
                raise refusals.refuse(
                    f"poptorch.MultiConv.{name} has {len(values)} values, but there are "
                    f"{convolutions} convolutions inside: give one value, or one for each",
                    origin,
                )
