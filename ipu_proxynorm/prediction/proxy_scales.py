"""Who multiplies with Proxy Norm's scale in a run's program, unit by unit, in a sentence."""

from __future__ import annotations

import math
from collections import Counter
from typing import Dict

from torch import nn

from ipu_proxynorm.memory import Capture
from ipu_proxynorm.norm import ProxyNormAct

FOLDED = "folded into the norm"
BIAS = "folded into the norm but for a shift in the next bias"
WEIGHTS = "in the next convolution's weights"
GATE = "in squeeze-and-excite's gate"
MEAN = "behind the mean over space"
ITSELF = "multiplied by the unit"
DROPPED = "left out"


def place_of_scale(unit: ProxyNormAct, elements: int) -> str:
    """Return where the scale of a unit goes in a program.

    Args:
        unit: with Proxy Norm.
        elements: of its output, of one image.
    """
    if unit.scale_rule != "applied":
        return GATE if unit.scale_rule == "left" else DROPPED
    readers = unit.readers
    if readers is not None and readers.shift_too:
        return MEAN
    if unit.activation.folds:
        return BIAS if unit.leaves_shift_on(elements) else FOLDED
    if readers is None or not unit.hands_scale_on(elements):
        return ITSELF
    return WEIGHTS if readers.weights else GATE


def places_of_scales(model: nn.Module, capture: Capture, prefix: str = "model.") -> Dict[str, str]:
    """Return the place of each unit's scale, by the unit's name in the model.

    Args:
        model: the network.
        capture: of its program.
        prefix: what names of layers have before them in the capture.
    """
    elements: Dict[str, int] = {}
    for operator in capture.operators:
        if operator.name == "native_group_norm":
            shape = capture.tensors[operator.outputs[0]].shape
            elements.setdefault(operator.layer, math.prod(shape[1:]))
    return {
        name: place_of_scale(module, elements[prefix + name])
        for name, module in model.named_modules()
        if isinstance(module, ProxyNormAct) and prefix + name in elements
    }


def scale_sentence(places: Dict[str, str]) -> str:
    """Return how many units have their scale where; empty where there are none."""
    counts = Counter(places.values())
    return ", ".join(f"{count} {place}" for place, count in counts.most_common())
