"""The tensors and the layers of a program that take most memory."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Tuple

from ipu_proxynorm.memory.graph import Capture


@dataclasses.dataclass(frozen=True)
class Large:
    """A tensor or a layer: its name, its bytes, and on which stage it is."""

    name: str
    bytes: int
    stage: int
    shape: Tuple[int, ...] = ()


def largest_tensors(capture: Capture, count: int = 10) -> List[Large]:
    """Return the largest activations of one micro-batch, by layer and operator."""
    stages = {index: o.stage for o in capture.operators for index in o.outputs}
    tensors = [t for t in capture.tensors if t.role == "activation" and t.index in stages]
    tensors.sort(key=lambda t: -t.bytes)
    return [
        Large(f"{t.layer or 'program'}: {t.name}", t.bytes, stages[t.index], t.shape)
        for t in tensors[:count]
    ]


def largest_layers(capture: Capture, count: int = 10) -> List[Large]:
    """Return the layers whose activations, kept for the backward pass, take most together."""
    sizes: Dict[str, int] = {}
    stages: Dict[str, int] = {}
    for operator in capture.operators:
        if operator.backward:
            continue
        stages.setdefault(operator.layer, operator.stage)
        for index in operator.outputs:
            tensor = capture.tensors[index]
            if tensor.saved and tensor.role == "activation":
                sizes[operator.layer] = sizes.get(operator.layer, 0) + tensor.bytes
    ordered = sorted(sizes, key=lambda name: -sizes[name])[:count]
    return [Large(name or "program", sizes[name], stages[name]) for name in ordered]
