"""The chips: how much SRAM an IPU has, and its clock."""

from __future__ import annotations

import dataclasses
from typing import Union

from ipu_proxynorm.errors import unknown_name

MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Chip:
    """One IPU.

    Source: Graphcore's public specifications; "tiles only have 638976 bytes" of a Mk2's
    out-of-memory message; clocks: Graphcore's data sheets.

    Attributes:
        name: as configurations name it.
        tiles: the tiles of an IPU.
        tile_bytes: SRAM of a tile.
        clock_hertz: the clock of the tiles, hertz.
        unevenness: by how much the fullest tile of a program exceeds the mean, times a Mk2's. Where
            tiles are more than 35 % full on average, the fullest has 1.12 times the mean on a Mk2
            and 1.23 times on a Mk1 (medians of 9 and 19 single operators, graphcore/poplibs,
            ``tests/benchmark_results.csv``).
    """

    name: str
    tiles: int
    tile_bytes: int
    clock_hertz: float = 1.33e9
    unevenness: float = 1.0

    @property
    def sram_bytes(self) -> int:
        """SRAM of all tiles together, bytes."""
        return self.tiles * self.tile_bytes


CHIPS = {
    "mk1": Chip("mk1", tiles=1216, tile_bytes=262_144, clock_hertz=1.6e9, unevenness=1.8),
    "mk2": Chip("mk2", tiles=1472, tile_bytes=638_976),
    # A Bow IPU is a Mk2 of higher clock.
    "bow": Chip("bow", tiles=1472, tile_bytes=638_976, clock_hertz=1.85e9),
    # So is a C600, with float8 and no other memory on its card; its clock is that of the 280
    # TFLOPS in float16 that Graphcore announced for it, where a Mk2 has 250.
    "c600": Chip("c600", tiles=1472, tile_bytes=638_976, clock_hertz=280 / 250 * 1.33e9),
}


def find_chip(chip: Union[str, Chip]) -> Chip:
    """Return the chip of that name.

    Raises:
        UserError: there is none.
    """
    if isinstance(chip, Chip):
        return chip
    known = CHIPS.get(str(chip).lower())
    if known is None:
        raise unknown_name("chip", str(chip), list(CHIPS))
    return known
