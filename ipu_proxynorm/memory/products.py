"""How poplibs would split a matrix product over the tiles of an IPU, and what the split costs.

poplibs plans a product as a convolution of 1 x 1 and takes the split that needs fewest cycles
(``poplin/ConvPlan.cpp``). So does this, with four of the terms of its estimate: what the
multiply-accumulate unit needs, what a tile receives of both factors, the sum of partial results
where the inner dimension is split, and factors that are rearranged.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, List, Tuple

import numpy as np

# Of a pass over one block of a factor (``PerformanceEstimation.hpp``, 1 x 1 vertex): 8 results of
# 16 inputs in float16, of 8 in float32; weights loaded at 8 bytes a cycle, then each of 6 workers
# starts, and needs 4 or 8 cycles a row.
_RESULTS = 8
_WORKERS = 6
_LOAD, _BLOCK_START, _WORKER_START = 64, 26, 20
_OUTER_START, _START = 15, 50
#: Cycles to add four partial results: a load of float32 partials and the next pointer.
_ADD = 1.5


@dataclasses.dataclass(frozen=True)
class Splits:
    """What every split of a product over tiles asks of the fullest tile.

    Attributes:
        compute: cycles of the multiply-accumulate unit.
        shared: bytes of the factor that neighbouring tiles receive together.
        own: bytes of the other factor.
        partials: partial results that are received and added, 0 where none are.
    """

    compute: Any
    shared: Any
    own: Any
    partials: Any


@functools.lru_cache(maxsize=1024)
def splits(rows: int, inner: int, columns: int, float32: bool, tiles: int) -> Splits:
    """Return the splits of ``rows x inner`` times ``inner x columns``, the latter as weights."""
    block = 8 if float32 else 16
    parts = [counts(rows, tiles), counts(-(-columns // _RESULTS), tiles)]
    parts.append(counts(-(-inner // block), tiles))
    across, along, within = np.meshgrid(*parts, indexing="ij")
    more_across, more_along, _ = np.meshgrid(*(_next(counts) for counts in parts), indexing="ij")
    # Of the tiles that are left over, more parts of rows or columns only take away.
    full = (more_across * along * within > tiles) & (across * more_along * within > tiles)
    chosen = full & (across * along * within <= tiles)
    across, along, within = across[chosen], along[chosen], within[chosen]
    own_rows = np.ceil(rows / across)
    groups_out = np.ceil(np.ceil(columns / _RESULTS) / along)
    groups_in = np.ceil(np.ceil(inner / block) / within)
    own_columns = np.minimum(groups_out * _RESULTS, columns)
    own_inner = np.minimum(groups_in * block, inner)
    row = (8 if float32 else 4) * _WORKERS * np.ceil(own_rows / _WORKERS)
    one = _BLOCK_START + _LOAD + _WORKERS * _WORKER_START + row
    size = 4 if float32 else 2
    return Splits(
        compute=_START + groups_in * (_OUTER_START + groups_out * one),
        shared=own_rows * own_inner * size,
        own=own_inner * own_columns * size,
        partials=own_rows * own_columns * (within > 1),
    )


def counts(units: int, tiles: int, step: float = 1.3) -> Any:
    """Return into how many parts so many units can be cut, a choice of all in steps of a factor."""
    most = min(units, tiles)
    found: List[int] = []
    parts = 1.0
    while parts < most:
        found.append(int(parts))
        parts = max(parts * step, parts + 1)
    even = {-(-units // -(-units // count)) for count in (*found, most)}
    return np.array(sorted(even), dtype=float)


def _next(counts: Any) -> Any:
    return np.append(counts[1:], np.inf)


def product_cycles(
    shape: Tuple[int, int, int],
    groups: int,
    float32: bool,
    tiles: int,
    bytes_per_cycle: float,
    sharing: float,
    compute: float,
    partial_bytes: int,
    adding: float,
) -> float:
    """Return the cycles of the cheapest split, without start and rearrangement.

    Args:
        shape: rows, inner size and columns of one product.
        groups: independent products of that shape, side by side on the tiles.
        float32: whether the data are float32.
        tiles: of the chip.
        bytes_per_cycle: that a tile receives.
        sharing: by what factor neighbouring tiles receive a factor faster that both need.
        compute: factor on the cycles of the multiply-accumulate unit.
        partial_bytes: of a partial result.
        adding: cycles to start the sum of partial results.
    """
    rows, inner, columns = shape
    best = float("inf")
    # Either factor can be the one that is loaded as weights.
    for first, last in ((rows, columns), (columns, rows)):
        found = splits(first, inner, last, float32, max(1, tiles // groups))
        received = found.shared / (sharing * bytes_per_cycle) + found.own / bytes_per_cycle
        summed = found.partials * (partial_bytes / bytes_per_cycle + _ADD / 4)
        total = compute * found.compute + received + summed + adding * (found.partials > 0)
        best = min(best, float(total.min()))
    return best * -(-groups // tiles)
