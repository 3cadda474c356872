"""What a compiled model tells of itself: places, names, values, times."""

from __future__ import annotations

import datetime
from typing import Any, List, NamedTuple, Optional, Tuple

import torch

from .. import _impl
from ..device import anchors, latency
from ..device.device import Device
from ..optimizer.link import OptimizerLink
from ..options import Options


class PlacedBlock(NamedTuple):
    """A block of a compiled model and where it runs."""

    block: str
    stage: int
    phase: int
    ipu: int


class Inspection:
    """The part of a wrapped model that only looks."""

    _device: Optional[Device]
    _link: Optional[OptimizerLink]
    _options: Options
    _compilation_time: Optional[datetime.timedelta]

    def _compiled(self) -> Device:
        raise NotImplementedError

    def compilationTime(self) -> datetime.timedelta:
        """Return how long compiling took.

        Raises:
            poptorch.Error: not compiled, or without ``showCompilationProgressBar``.

        """
        if self._device is None or self._compilation_time is None:
            raise _impl.createPoptorchError(
                "Please compile the model before obtaining compilation time."
            )
        if not self._options._show_compilation_progress_bar:
            raise _impl.createPoptorchError(
                "Please set showCompilationProgressBar option to obtain compilation time."
            )
        return self._compilation_time

    def blockPlacements(self) -> List[PlacedBlock]:
        """Return where each block of the compiled model runs; what is in none runs on IPU 0."""
        return [
            PlacedBlock(name, *placement) for name, placement in self._compiled().program.blocks
        ]

    def _debugGetPopartIR(self) -> str:
        """Refuse: PopTorch's own tests and some programs parse PopART's representation.

        Raises:
            poptorch.Error: always.

        """
        raise _impl.createPoptorchError(
            "There is no PopART here, and so no representation of its: "
            "ipu_proxynorm.simulator.schedule.operators(model) lists the compiled operators."
        )

    # ---- looking inside ------------------------------------------------------------------------

    def getTensorNames(self) -> List[str]:
        """Return the names of the program's tensors.

        Raises:
            AssertionError: not compiled.

        """
        assert self._device is not None, "Model must be compiled before calling getTensorNames"
        link = self._link
        optimizer = link.device_optimizer if link is not None else None
        scalars = [] if optimizer is None else optimizer.scalarNames()
        return anchors.tensor_names(self._device.program, scalars)

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """Return an anchored tensor as it was in the last call.

        Raises:
            AssertionError: nothing was anchored under this name, or there was no call.

        """
        values = {} if self._device is None else self._device.anchors
        assert short_name in values, f"No tensor with name {short_name} found."
        return values[short_name]

    # ---- measurements -------------------------------------------------------------------------

    def getPerfCounters(self) -> latency.Counters:
        """Return when inputs and outputs of the last call moved, in seconds.

        The keys are ``input``, ``input_complete``, ``output``, ``output_complete``; for each tensor
        there is a list of one time for each micro-batch.
        """
        if self._device is None:
            return latency.counters([], 0, 0)
        transfers = [self._device.transfers[key] for key in sorted(self._device.transfers)]
        program = self._device.program
        return latency.counters(transfers, len(program.input_dtypes), sum(program.output_on_device))

    def _latency(self, start: str, first: Any, end: str, last: Any) -> Tuple[float, float, float]:
        return latency.latency(self.getPerfCounters(), start, first, end, last)

    def getHostIpuLatency(self) -> Tuple[float, float, float]:
        """Return minimum, maximum and mean time from a micro-batch's request to its arrival."""
        return self._latency("input", min, "input_complete", max)

    def getComputeLatency(self) -> Tuple[float, float, float]:
        """Return minimum, maximum and mean time from a micro-batch's arrival to its last output."""
        return self._latency("input_complete", max, "output", max)

    def getIpuHostLatency(self) -> Tuple[float, float, float]:
        """Return minimum, maximum and mean time from an output being there to its arrival."""
        return self._latency("output", min, "output_complete", max)

    def getLatency(self) -> Tuple[float, float, float]:
        """Return minimum, maximum and mean time from a micro-batch's request to its last output."""
        return self._latency("input", min, "output_complete", max)

    def cycleCount(self) -> int:
        """Refuse: a CPU has no count of an IPU's cycles.

        Raises:
            poptorch.Error: always; which text says what is missing.

        """
        if not self._options._Popart.options.get("instrumentWithHardwareCycleCounter"):
            raise _impl.createPoptorchError(
                "Cycle count logging is disabled. Please set option logCycleCount to True to "
                "enable."
            )
        if self._device is None:
            raise _impl.createPoptorchError(
                "Please run the model at least once before obtaining cycle count."
            )
        raise _impl.createPoptorchError(
            "Cycle count logging is only supported on actual IPU hardware."
        )
