"""A stream of random numbers for each replica, apart from the host's."""

from __future__ import annotations

import contextlib
from typing import Iterator, List

import torch


def _packed(state: torch.Tensor) -> List[int]:
    return state.tolist()


class RandomStreams:
    """The replicas' random number generators.

    Args:
        seed: the device's seed; each replica derives its own from it.
        replicas: how many streams.
        first: the number of the first, among those of all processes.

    """

    def __init__(self, seed: int, replicas: int, first: int = 0) -> None:
        self.seed = seed
        self._first = first
        self._states = [self._initial(replica) for replica in range(replicas)]

    def _initial(self, replica: int) -> torch.Tensor:
        # An odd multiplier keeps the seeds of replicas apart for every device seed.
        seed = (self.seed + (self._first + replica) * 0x9E3779B97F4A7C15) % (1 << 63)
        return torch.Generator().manual_seed(seed).get_state()

    @contextlib.contextmanager
    def use(self, replica: int) -> Iterator[None]:
        """Let torch draw from this replica's stream meanwhile."""
        host = torch.get_rng_state()
        torch.set_rng_state(self._states[replica])
        try:
            yield
        finally:
            self._states[replica] = torch.get_rng_state()
            torch.set_rng_state(host)

    def state(self) -> List[int]:
        """Return the streams' state, as numbers."""
        return [number for state in self._states for number in _packed(state)]

    def set_state(self, state: List[int]) -> None:
        """Continue from a state that `state` returned; with no numbers, from the seed."""
        if not state:
            self._states = [self._initial(replica) for replica in range(len(self._states))]
            return
        size = len(state) // len(self._states)
        self._states = [
            torch.tensor(state[start : start + size], dtype=torch.uint8)
            for start in range(0, len(state), size)
        ]
