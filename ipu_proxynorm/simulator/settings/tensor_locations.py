"""Where tensors are stored: SRAM or Streaming Memory, whole or sharded over replicas."""

from __future__ import annotations

from typing import Any, Optional

from .._options_impl import OptionsDict, require


def _requireType(name: str, value: Any, expected: type) -> None:
    require(
        isinstance(value, expected), f"{name} needs a value of type {expected} but got {value!r}"
    )


class TensorLocationSettings(OptionsDict):
    """Where one kind of tensor is stored."""

    def minElementsForOffChip(self, min_elements: int) -> TensorLocationSettings:
        """Keep tensors of fewer elements in SRAM whatever else is set."""
        _requireType("minElementsForOffChip", min_elements, int)
        self.createOrSet(minElementsForOffChip=min_elements)
        return self

    def minElementsForReplicatedTensorSharding(self, min_elements: int) -> TensorLocationSettings:
        """Shard over replicas only tensors of more elements than this."""
        _requireType("minElementsForReplicatedTensorSharding", min_elements, int)
        self.createOrSet(minElementsForReplicatedTensorSharding=min_elements)
        return self

    def useOnChipStorage(self, use: Optional[bool] = True) -> TensorLocationSettings:
        """SRAM if True, Streaming Memory if False, undefined if None."""
        if use is None:
            self.deleteIfExists("onChip")
        else:
            _requireType("useOnChipStorage", use, bool)
            self.createOrSet(onChip=int(use))
        return self

    def useReplicatedTensorSharding(self, use: bool = True) -> TensorLocationSettings:
        """Store a part of the tensor with each replica."""
        _requireType("useReplicatedTensorSharding", use, bool)
        self.createOrSet(useReplicatedTensorSharding=int(use))
        return self

    def useIOTilesToLoad(self, use: bool = True) -> TensorLocationSettings:
        """Load through IO tiles rather than compute tiles."""
        _requireType("useIOTilesToLoad", use, bool)
        self.createOrSet(useIOTilesToLoad=int(use))
        return self

    def useIOTilesToStore(self, use: bool = True) -> TensorLocationSettings:
        """Store through IO tiles rather than compute tiles."""
        _requireType("useIOTilesToStore", use, bool)
        self.createOrSet(useIOTilesToStore=int(use))
        return self


class _TensorLocationOptions(OptionsDict):
    """``Options.TensorLocations``."""

    def numIOTiles(self, num_tiles: int) -> _TensorLocationOptions:
        """Tiles of each IPU set aside for exchange: even, from 32 to 192."""
        _requireType("numIOTiles", num_tiles, int)
        require(
            32 <= num_tiles <= 192 and num_tiles % 2 == 0,
            "numIOTiles must be an even number between 32 and 192.",
        )
        self.createOrSet(numIOTiles=num_tiles)
        return self

    def setActivationLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where activations are stored."""
        return self._setLocation("location_activation", location)

    def setWeightLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where weights are stored."""
        return self._setLocation("location_weight", location)

    def setOptimizerLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where optimiser state is stored."""
        return self._setLocation("location_optimizer", location)

    def setAccumulatorLocation(self, location: TensorLocationSettings) -> _TensorLocationOptions:
        """Where gradient accumulators are stored."""
        return self._setLocation("location_accumulator", location)

    def _setLocation(self, key: str, location: TensorLocationSettings) -> _TensorLocationOptions:
        _requireType(key, location, TensorLocationSettings)
        self.createOrSet(**{key: location.toDict()})
        return self
