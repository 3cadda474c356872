"""Watches a network's normalizations while it runs, and accumulates the power of each."""

from __future__ import annotations

import fnmatch
from collections import Counter
from types import TracebackType
from typing import Any, Callable, Dict, Iterable, List, Optional, Type

import torch
from torch import Tensor, nn

from ipu_proxynorm.analysis.normalized import NORMS, normalized
from ipu_proxynorm.analysis.power import Power, PowerAccumulator
from ipu_proxynorm.errors import UserError, nearest


def norm_layers(model: nn.Module, pattern: str = "*") -> Dict[str, nn.Module]:
    """Return the normalizations of ``model`` whose name matches ``pattern``, by name.

    Args:
        model: any network.
        pattern: a layer's name, or a pattern such as ``layer1.*``.

    Raises:
        UserError: the network has none, or the pattern matches none.

    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, NORMS)}
    if not layers:
        raise UserError(
            f"{type(model).__name__} has no normalization to analyse: expected one of "
            f"{', '.join(kind.__name__.lstrip('_') for kind in NORMS)}"
        )
    matching = {name: m for name, m in layers.items() if fnmatch.fnmatchcase(name, pattern)}
    if not matching:
        close = nearest(pattern, layers) or list(layers)[:3]
        raise UserError(
            f"layers {pattern!r} matches none of the network's {len(layers)} normalizations; "
            f"nearest: {', '.join(close)}"
        )
    return matching


class PowerRecorder:
    """Records the power decomposition after each normalization, while in use as a context.

    Args:
        model: any network; its results do not change.
        pattern: which normalizations, see :func:`norm_layers`.

    A layer that runs more than once in a forward pass is recorded as ``name``, ``name#2``, ...

    """

    def __init__(self, model: nn.Module, pattern: str = "*") -> None:
        self.model = model
        self.layers = norm_layers(model, pattern)
        self._accumulators: Dict[str, PowerAccumulator] = {}
        self._calls: Counter[str] = Counter()
        self._handles: List[Any] = []

    def __enter__(self) -> PowerRecorder:
        self._handles = [self.model.register_forward_pre_hook(lambda *_: self._calls.clear())]
        for name, layer in self.layers.items():
            self._handles.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, name: str) -> Callable[..., None]:
        def record(layer: nn.Module, inputs: Any) -> None:
            self._calls[name] += 1
            call = self._calls[name]
            key = name if call == 1 else f"{name}#{call}"
            with torch.no_grad():
                self._accumulators.setdefault(key, PowerAccumulator()).update(
                    normalized(layer, inputs[0])
                )

        return record

    def result(self) -> Dict[str, Power]:
        """Return the power after each normalization that ran, in the order in which they ran."""
        return {name: found.result() for name, found in self._accumulators.items()}


def record_power(
    model: nn.Module, batches: Iterable[Tensor], pattern: str = "*"
) -> Dict[str, Power]:
    """Return the power decomposition after each normalization of ``model`` over ``batches``.

    Without gradients, in the mode (training or evaluation) that the model is in. Batch Norm in
    training normalizes each batch by itself; its running statistics are left as they were. The
    other norms' figures do not depend on the size of the batches.

    Args:
        model: any network that takes one tensor.
        batches: its inputs, e.g. images ``(N, C, H, W)``.
        pattern: which normalizations, see :func:`norm_layers`.

    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    recorder = PowerRecorder(model, pattern)
    try:
        with torch.no_grad(), recorder:
            for batch in batches:
                model(batch)
    finally:
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return recorder.result()
