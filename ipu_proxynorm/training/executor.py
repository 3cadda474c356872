"""The training program on its IPUs, and what is read from them for a checkpoint."""

from __future__ import annotations

import zlib
from typing import Any, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.prediction.check import Check


def _checksum(streams: Tensor) -> int:
    """Return 31 bits that differ from one state of the streams to another."""
    return zlib.crc32(streams.contiguous().numpy().tobytes()) & 0x7FFFFFFF


class TrainingExecutor:
    """A PopTorch training model that can go on from a checkpoint bit for bit.

    Args:
        program: what is trained.
        options: how.
        optimizer: PopTorch's; with the state that it had, if it had one.
        seed: the seed of the replicas' random numbers.
        streams: ``(replicas, n)``, state of all processes' replicas; None: as the seed begins them.
        check: called with the inputs before the program is compiled; what it raises stops that.
    """

    def __init__(
        self,
        program: nn.Module,
        options: poptorch.Options,
        optimizer: torch.optim.Optimizer,
        seed: int,
        streams: Optional[Tensor] = None,
        check: Optional[Check] = None,
    ) -> None:
        self.optimizer = optimizer
        self.executor = poptorch.trainingModel(program, options, optimizer)
        self._replicas = int(options.replication_factor)
        self._processes = int(options.Distributed.numProcesses)
        self._first = self._replicas * int(options.Distributed.processId)
        self._seed, self._start, self._check = seed, streams, check
        self._streams: Optional[Tensor] = None
        self._set_all = True

    @property
    def compiled(self) -> bool:
        """Whether the program is compiled."""
        return bool(self.executor.isCompiled())

    def attach(self) -> None:
        """Take the IPUs, if the program is compiled and has left them."""
        if self.executor.isCompiled() and not self.executor.isAttachedToDevice():
            self.executor.attachToDevice()
            self._set_all = True

    def detach(self) -> None:
        """Leave the IPUs to another program; weights and state come to the host."""
        if self.executor.isCompiled() and self.executor.isAttachedToDevice():
            self._streams = self.streams()
            self.executor.detachFromDevice()

    def compile(self, *inputs: Tensor) -> None:
        """Compile for these inputs, once."""
        if self.executor.isCompiled():
            return
        if self._check is not None:
            # Not from PopTorch's hook: by then the model is on the device, and what touches it
            # becomes part of the program (_poplar_executor.py:736, 796).
            self._check(inputs)
        self.executor.compile(*inputs)
        if self._start is None:
            return
        if len(self._start) == self._replicas * self._processes:
            own = self._start[self._first : self._first + self._replicas]
            self.executor.rng_state = [self._seed, *own.reshape(-1).tolist()]
        else:
            # Another number of replicas: streams of their own, not those of the run's beginning.
            self.executor.rng_state = [self._seed ^ _checksum(self._start)]

    def __call__(self, *inputs: Tensor) -> Tuple[Tensor, Tensor]:
        """Make one host call with the optimiser's present attributes."""
        self.compile(*inputs)
        if self._set_all:
            self._set_all_attributes()
        self.executor.setOptimizer(self.optimizer)
        losses, right = self.executor(*inputs)
        return losses, right

    def _set_all_attributes(self) -> None:
        """Send all of the optimiser's attributes with the next ``setOptimizer``.

        A program that takes the IPUs brings back the attributes as they were when they were last
        read, in float32, and only changes are sent: so all change first.
        """
        groups: List[Any] = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 2 * group["lr"] + 1
        self.executor.setOptimizer(self.optimizer)
        for group, rate in zip(groups, rates):
            group["lr"] = rate
        self._set_all = False

    def streams(self) -> Optional[Tensor]:
        """Return the state of this process's replicas' random numbers, int64 ``(replicas, n)``.

        Before the program is compiled the replicas are still where ``streams`` left them, whatever
        their number was: the first process returns those of all, the others none.
        """
        if not self.executor.isCompiled():
            own = slice(None) if self._first == 0 else slice(0)
            return None if self._start is None else self._start[own]
        if not self.executor.isAttachedToDevice():
            return self._streams
        _, *state = self.executor.rng_state
        return torch.tensor(state, dtype=torch.int64).reshape(self._replicas, -1)
