"""Streams of random numbers apart from the host's: each replica's, and the weight updates'."""

from __future__ import annotations

import contextlib
from typing import Iterator, List

import torch

from .._impl import createPoptorchError
from ..trace import compute_device

_WORD = torch.int64  # a generator's state is a multiple of its 8 bytes long


class RandomStreams:
    """The replicas' random number generators, and one that all replicas share.

    Weight updates draw from the shared one, where their rounding is stochastic: replicas, of all
    processes, must come to the same weights.

    Args:
        seed: the device's seed; each replica derives its own from it.
        replicas: how many streams.
        first: the number of the first, among those of all processes.
        device: whose generator is used.

    """

    def __init__(
        self,
        seed: int,
        replicas: int,
        first: int = 0,
        device: torch.device = compute_device.HOST,
    ) -> None:
        self.seed = seed
        self._device = device
        self._first = first
        self._replicas = replicas
        self._begin()

    def _begin(self) -> None:
        self._states = [self._initial(self._first + r) for r in range(self._replicas)]
        self._shared = self._initial(-1)

    def _initial(self, number: int) -> torch.Tensor:
        # An odd multiplier keeps the seeds of replicas apart for every device seed.
        seed = (self.seed + number * 0x9E3779B97F4A7C15) % (1 << 63)
        return compute_device.generator_state(seed, self._device)

    @contextlib.contextmanager
    def use(self, replica: int) -> Iterator[None]:
        """Let torch draw from this replica's stream meanwhile."""
        host = compute_device.random_state(self._device)
        compute_device.set_random_state(self._states[replica], self._device)
        try:
            yield
        finally:
            self._states[replica] = compute_device.random_state(self._device)
            compute_device.set_random_state(host, self._device)

    @contextlib.contextmanager
    def use_shared(self) -> Iterator[None]:
        """Let torch draw from the stream that is the same on all replicas meanwhile."""
        host = compute_device.random_state(self._device)
        compute_device.set_random_state(self._shared, self._device)
        try:
            yield
        finally:
            self._shared = compute_device.random_state(self._device)
            compute_device.set_random_state(host, self._device)

    def state(self) -> List[int]:
        """Return the streams' state, as numbers: as many for each replica."""
        rows = [torch.cat([state, self._shared]) for state in self._states]
        return [number for row in rows for number in row.view(_WORD).tolist()]

    def set_state(self, state: List[int]) -> None:
        """Continue from a state that `state` returned; with no numbers, from the seed."""
        if not state:
            self._begin()
            return
        expected = len(self.state())
        if len(state) != expected:
            raise createPoptorchError(
                f"The random state has {len(state)} numbers, but that of {self._replicas} replicas "
                f"on {self._device.type} has {expected}: it belongs to another number of replicas, "
                "another kind of device or another version."
            )
        rows = torch.tensor(state, dtype=_WORD).reshape(self._replicas, -1)
        halves = [row.view(torch.uint8).chunk(2) for row in rows]
        self._states = [own.clone() for own, _ in halves]
        self._shared = halves[0][1].clone()
