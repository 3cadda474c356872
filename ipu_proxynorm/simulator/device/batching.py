"""How a combined batch is split into micro-batches, and outputs put together again."""

from __future__ import annotations

from typing import Dict, NamedTuple

import torch

from .. import enums
from ..options import Options


class Position(NamedTuple):
    """Which micro-batch of a host call this is."""

    device_iteration: int
    accumulation_step: int
    replica: int


class BatchLayout(NamedTuple):
    """The micro-batches of a combined batch.

    They lie row-major along dimension 0, as
    ``[device iteration][accumulation step][input group]``, where all replicas of an input group
    get the same micro-batch.
    """

    device_iterations: int
    accumulation_steps: int
    replicas: int
    group_size: int
    consecutive_groups: bool

    @classmethod
    def of(cls, options: Options) -> BatchLayout:
        """Return the layout that the options describe."""
        return cls(
            options.device_iterations,
            options.Training.gradient_accumulation,
            options.replication_factor,
            options.input_group_size,
            options.input_cgt != enums.CommGroupType.Orthogonal,
        )

    @property
    def groups(self) -> int:
        """Replicas that get micro-batches of their own."""
        return self.replicas // self.group_size

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a combined batch."""
        return self.device_iterations * self.accumulation_steps * self.groups

    def group_of(self, replica: int) -> int:
        """Return the input group that a replica belongs to."""
        return replica // self.group_size if self.consecutive_groups else replica % self.groups

    def micro_batch(self, tensor: torch.Tensor, position: Position) -> torch.Tensor:
        """Return the part of an input that one replica gets at one step: a view.

        Args:
            tensor: (micro-batches × micro-batch size, ...), or a number, which is not split.
            position: the step and the replica.

        """
        if tensor.dim() == 0:
            return tensor
        iteration, step, replica = position
        index = (iteration * self.accumulation_steps + step) * self.groups + self.group_of(replica)
        size = tensor.shape[0] // self.micro_batches
        return tensor if size == tensor.shape[0] else tensor.narrow(0, index * size, size)

    def check(self, tensor: torch.Tensor) -> None:
        """Check that an input splits into micro-batches without a remainder.

        Raises:
            AssertionError: names the shape, the options and their product.

        """
        size = tensor.shape[0] if tensor.dim() else 1
        assert size % self.micro_batches == 0, (
            f"Invalid batch dimension: In the input {tensor.shape}, the batch dimension ({size}) "
            f"must be a multiple of Options.deviceIterations({self.device_iterations}) * "
            f"(Options.replicationFactor({self.replicas}) / "
            f"Options.inputReplicaGrouping.input_group_size({self.group_size})) * "
            f"Options.Training.gradientAccumulation({self.accumulation_steps}) = "
            f"{self.micro_batches} because it is used to calculate the batch size which will be "
            "executed on the device in any given iteration. For a full explanation see the "
            "batching semantics page of the documentation."
        )


class OutputCollector:
    """Puts together the values of one output over a host call, as the output mode says.

    Args:
        layout: the micro-batches of the call.
        mode: which values return.
        period: for ``OutputMode.EveryN``, every how many device iterations.
        constant: PopTorch computes the output while it compiles and returns it once, whatever the
            mode (popart_compiler/source/Compiler.cpp:1309).

    """

    def __init__(
        self, layout: BatchLayout, mode: enums.OutputMode, period: int, constant: bool = False
    ) -> None:
        self._layout = layout
        self._constant = constant
        self._mode = mode
        self._period = period
        self._values: Dict[Position, torch.Tensor] = {}

    def wants(self, position: Position) -> bool:
        """Tell whether the value of this micro-batch returns, or contributes to what does."""
        if self._constant:
            return position == (0, 0, 0)
        if self._mode in (enums.OutputMode.All, enums.OutputMode.Sum):
            return True
        if self._mode == enums.OutputMode.EveryN:
            return (position.device_iteration + 1) % self._period == 0
        return self._is_last(position)

    def returns(self, position: Position) -> bool:
        """Tell whether a value goes to the host at this micro-batch."""
        return self.wants(position) and (
            self._mode != enums.OutputMode.Sum or self._is_last(position)
        )

    def _is_last(self, position: Position) -> bool:
        last = (self._layout.device_iterations - 1, self._layout.accumulation_steps - 1)
        return position[:2] == last

    def add(self, position: Position, value: torch.Tensor) -> None:
        """Take the value of a micro-batch."""
        if self._mode == enums.OutputMode.Sum:
            position = Position(0, 0, position.replica)
            if position in self._values:
                value = (self._values[position] + value).to(value.dtype)
        self._values[position] = value

    def result(self) -> torch.Tensor:
        """Return the values in the order of the batch, along dimension 0; a single one as it is."""
        values = [self._values[position] for position in sorted(self._values)]
        if not values:  # a period longer than the call
            return torch.empty(0)
        if len(values) == 1:
            return values[0].contiguous()
        return torch.stack(values) if values[0].dim() == 0 else torch.cat(values)
