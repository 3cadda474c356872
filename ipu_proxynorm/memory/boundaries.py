"""Where a captured program can be cut: layers at whose beginning exactly one activation crosses."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Sequence, Tuple

from ipu_proxynorm.memory.graph import Capture


@dataclasses.dataclass(frozen=True)
class Boundary:
    """A place where a stage may begin, or a checkpoint may lie.

    Attributes:
        layer: that begins there.
        operator: its first forward operator.
        before: the layer that ends there; the activation that crosses is its output.
        bytes: the bytes of that activation.
    """

    layer: str
    operator: int
    before: str
    bytes: int


def boundaries(capture: Capture, points: Sequence[str] = ()) -> List[Boundary]:
    """Return the boundaries in order; with ``points`` only those that begin at these layers."""
    forward = [o for o in capture.operators if not o.backward]
    products: Dict[str, int] = {}
    for operator in forward:
        for prefix in prefixes(operator.layer):
            products[prefix] = products.get(prefix, 0) + operator.passes
    begun: Dict[str, None] = {}
    found = []
    crossing = _crossing(capture)
    for last, operator in zip(forward, forward[1:]):
        begun.update(dict.fromkeys(prefixes(last.layer)))
        beginning = [p for p in prefixes(operator.layer) if p not in begun]
        if points:
            beginning = [p for p in beginning if p in points]
        ended = [p for p in prefixes(last.layer) if p not in prefixes(operator.layer)]
        if not beginning or not ended:
            continue
        count, size = crossing[operator.index]
        if count == 1:
            # The innermost layer of more than one product: a block, not its convolution.
            blocks = [p for p in beginning if products[p] > 1]
            layer = blocks[-1] if blocks else beginning[0]
            found.append(Boundary(layer, operator.index, ended[0], size))
    return found


def _crossing(capture: Capture) -> List[Tuple[int, int]]:
    """Return, for each operator, how many activations come to it or pass it by, and their bytes.

    Inputs (a loss's labels, say) come from the host, which sends them to the stage that reads them.
    What does not grow with the micro-batch (a proxy's moments, say) is made of weights, and small.
    """
    change = [[0, 0] for _ in range(len(capture.operators) + 1)]
    for tensor in capture.tensors:
        moves = tensor.role == "activation" and tensor.scales
        if moves and tensor.last_forward_use > tensor.producer:
            for position, sign in ((tensor.producer + 1, 1), (tensor.last_forward_use + 1, -1)):
                change[position][0] += sign
                change[position][1] += sign * tensor.bytes
    totals, count, size = [], 0, 0
    for more, bytes_more in change:
        count, size = count + more, size + bytes_more
        totals.append((count, size))
    return totals


def prefixes(layer: str) -> List[str]:
    """Return the names of a layer and of all that hold it, the outermost first."""
    parts = layer.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1) if layer]
