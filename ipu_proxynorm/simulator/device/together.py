"""Which micro-batches of a host call the device computes together, and how many at once.

``POPTORCH_SIM_TOGETHER`` is the largest number of images to compute at once; 0 computes one
micro-batch after the other. Without it as many micro-batches are taken together as keep the largest
tensor of the program within a CPU's caches, and all of them within 2 GiB. The number depends on the
program alone, not on what the machine has free: sums are rounded in their order, and a run that
goes on elsewhere is to go on exactly.
"""

from __future__ import annotations

import os
from typing import Callable, ContextManager, Dict, Iterator, List, Mapping, Optional, Sequence

import torch

from .._impl import createPoptorchError
from .._logging import logger
from ..options import Options
from ..trace import compute_device
from ..trace.liveness import bytes_of, most_bytes
from ..trace.optimize import passes
from ..trace.program import Program
from ..trace.together.program import Together
from ..trace.together.values import NotTogether
from .batching import BatchLayout, Position
from .memory import free_memory

VARIABLE = "POPTORCH_SIM_TOGETHER"
#: Bytes of the largest tensor of a program up to which more micro-batches at once are faster.
LARGEST_TENSOR = 1 << 23
#: Bytes of all the tensors that are needed at the same time.
MOST_MEMORY = 1 << 31

Tensors = List[torch.Tensor]


def images_asked() -> Optional[int]:
    """Return how many images the environment lets be computed at once, None where it says nothing.

    Raises:
        poptorch.Error: it says no number.

    """
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    if not value.isdigit():
        raise createPoptorchError(
            f"{VARIABLE}={value}: expected the largest number of images to compute at once, or 0 "
            "to compute one micro-batch after the other."
        )
    return int(value)


def reason_against(
    program: Program, options: Options, layout: BatchLayout, per_replica: Mapping[str, object]
) -> Optional[str]:
    """Return why micro-batches of a program are computed one after the other, None if not so."""
    if layout.device_iterations * layout.accumulation_steps * layout.replicas == 1:
        return "there is one micro-batch"
    if not passes.enabled():
        return f"{passes.VARIABLE}=0"
    if images_asked() in (0, 1):
        return f"{VARIABLE}={images_asked()}"
    if program.device != compute_device.HOST:
        return f"the program runs on {program.device}"
    if program.exchanges:
        return "replicas exchange values"
    if per_replica:
        return f"{', '.join(per_replica)} differ between replicas"
    if options.anchored_tensors:
        return "tensors of single micro-batches are anchored"
    if program.written_inputs:
        return "the model changes its inputs in place"
    return None


def at_once(program: Program) -> int:
    """Return how many micro-batches of a program to compute at once."""
    asked = images_asked()
    if asked is not None:
        images = [traced.shape[0] for traced in program.inputs if traced.shape]
        return max(1, asked // max([*images, 1]))
    made = _bytes_made(program)
    count = max(1, LARGEST_TENSOR // max([*made, 1]))
    return max(1, min(count, MOST_MEMORY // max(_bytes_at_once(program, MOST_MEMORY // count), 1)))


def _bytes_made(program: Program) -> List[int]:
    """Return the bytes of each tensor that a program makes."""
    return [
        bytes_of(traced) for operation in program.operations for traced in operation.makes.values()
    ]


def _bytes_at_once(program: Program, allowed: int) -> int:
    """Return the bytes that a program needs at the same time, or of all it makes if these fit."""
    made = sum(_bytes_made(program))
    # Counting exactly takes the program as it is run, which is made for nothing else here.
    return made if made <= allowed else most_bytes(program.executable.block)


def warn_of_memory(program: Program, count: int) -> None:
    """Warn where micro-batches at once take more memory than there is free."""
    free = free_memory()
    if free is None:
        return
    needed = count * _bytes_at_once(program, free // count)
    if needed > free:
        logger.warning(
            f"{count} micro-batches computed together take about {needed >> 20} MiB, and "
            f"{free >> 20} MiB are free: {VARIABLE} says how many images to take at most."
        )


class MicroBatches:
    """Computes the micro-batches of a program together.

    Args:
        program: the program of one micro-batch.
        layout: the layout of the micro-batches of a host call.

    Raises:
        NotTogether: they depend on one another.

    """

    def __init__(self, program: Program, layout: BatchLayout) -> None:
        self._program = program
        self._layout = layout
        steps = layout.accumulation_steps * layout.replicas
        # Nothing changes between the device iterations of inference.
        positions = steps if program.trained else steps * layout.device_iterations
        groups = -(-positions // at_once(program))
        self.count = -(-positions // groups)
        if self.count == 1:
            asked = images_asked()
            raise NotTogether(
                "one fills the caches or 2 GiB" if asked is None else f"{VARIABLE}={asked}"
            )
        self._together: Together = program.make_together()
        logger.info(f"{self.count} of {positions} micro-batches are computed together")
        warn_of_memory(program, self.count)

    def groups_of(self, positions: Sequence[Position]) -> Iterator[Sequence[Position]]:
        """Yield the positions that are computed together, as even groups as there are."""
        groups = -(-len(positions) // self.count)
        start = 0
        for number in range(groups):
            end = (number + 1) * len(positions) // groups
            yield positions[start:end]
            start = end

    def inputs_of(self, positions: Sequence[Position], inputs: Sequence[torch.Tensor]) -> Tensors:
        """Return the micro-batches at these positions, one after the other."""
        found = []
        for tensor in inputs:
            parts = [self._layout.micro_batch(tensor, position) for position in positions]
            found.append(parts[0] if tensor.dim() == 0 else _joined(tensor, parts))
        return found

    def run(
        self,
        positions: Sequence[Position],
        micro_batches: Tensors,
        states: Sequence[Tensors],
        scaling: torch.Tensor,
        stream: Callable[[int], ContextManager[object]],
        prepared: Dict[int, Tensors],
    ) -> List[Tensors]:
        """Run the micro-batches at some positions.

        Args:
            positions: the positions of the micro-batches.
            micro_batches: the inputs, one micro-batch after the other.
            states: parameters and buffers of each replica.
            scaling: the loss scaling.
            stream: the random stream of a replica.
            prepared: what holds until the next weight update, by the number of micro-batches.

        Returns:
            the outputs of each micro-batch, then the sums of the gradients.

        """
        count, names = len(positions), len(self._program.parameter_names)
        program, differ = self._together.of(count)
        parameters = states[0][:names]
        if count not in prepared:
            prepared[count] = program.prepare(parameters)
        buffers: List[object] = [
            [states[position.replica][names + at] for position in positions]
            if listed
            else states[0][names + at]
            for at, listed in enumerate(self._together.listed_buffers)
        ]
        drawn = self._draw(positions, states, micro_batches, scaling, stream)
        arguments = [*parameters, *buffers, *micro_batches, scaling, *drawn]
        results = program.run(prepared[count], arguments)  # type: ignore[arg-type]
        outputs = [
            value.unbind() if one_each else [value] * count
            for value, one_each in zip(results, differ)
        ]
        return [*(list(row) for row in zip(*outputs)), results[len(differ) :]] if outputs else [
            *[[] for _ in positions], results
        ]  # fmt: skip

    def _draw(
        self,
        positions: Sequence[Position],
        states: Sequence[Tensors],
        micro_batches: Tensors,
        scaling: torch.Tensor,
        stream: Callable[[int], ContextManager[object]],
    ) -> Tensors:
        """Return the random numbers of each micro-batch, stacked, from its replica's stream."""
        if not self._together.draws:
            return []
        rows: Dict[Position, Tensors] = {}
        for replica in sorted({position.replica for position in positions}):
            with stream(replica):
                for position in positions:
                    if position.replica == replica:
                        arguments = [*states[replica], *micro_batches, scaling]
                        rows[position] = self._together.draw(arguments)
        columns = zip(*(rows[position] for position in positions))
        return [torch.stack(column) for column in columns]


def _joined(tensor: torch.Tensor, parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return tensors one after the other: a view where they lie so in ``tensor``."""
    size, step = parts[0].shape[0], parts[0].stride(0) if parts[0].dim() else 0
    first = parts[0].storage_offset()
    follow = all(p.storage_offset() == first + n * size * step for n, p in enumerate(parts))
    if follow and parts[0].numel():
        start = (first - tensor.storage_offset()) // step if step else 0
        return tensor.narrow(0, start, size * len(parts))
    return torch.cat(list(parts))


def planned(
    program: Program,
    options: Options,
    layout: BatchLayout,
    per_replica: Mapping[str, object],
    accumulators: Sequence[torch.dtype],
) -> tuple[Optional[MicroBatches], str]:
    """Return what computes a program's micro-batches together, or None and why it is not done.

    Args:
        program: the program of one micro-batch.
        options: the model's.
        layout: the layout of the micro-batches.
        per_replica: parameters that differ between replicas, by name.
        accumulators: types that gradients are accumulated in.

    """
    reason = reason_against(program, options, layout, per_replica)
    if reason is None and any(dtype != torch.float32 for dtype in accumulators):
        reason = "gradients are accumulated in float16"
    if reason is None:
        try:
            return MicroBatches(program, layout), ""
        except NotTogether as error:
            reason = str(error)
    logger.info(f"Micro-batches are computed one after the other: {reason}")
    return None, reason
