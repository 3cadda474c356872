"""Tensors of the program that the user asked to see: their names, and their values in a call."""

from __future__ import annotations

from typing import Dict, List, Mapping

import torch

from .. import _impl, enums
from ..trace.program import Program
from .batching import BatchLayout, OutputCollector, Position

GRADIENT = "Gradient___"
UPDATED = "UpdatedVar___"
LOSS_SCALE = "finalLossScale"


def tensor_names(program: Program, scalars: List[str]) -> List[str]:
    """Return the names of a program's tensors: inputs, weights, results and what training adds.

    Args:
        program: the compiled model.
        scalars: names of the optimiser's scalars, none for inference.

    """
    inputs = len(program.input_dtypes)
    names = ["input" if i == 0 else f"input/{i}" for i in range(inputs)]
    names += [*program.parameter_names, *program.buffer_names]
    counts: Dict[str, int] = {}
    for operation in program.operations:
        if operation.origin.backward:
            continue
        number = counts[operation.name] = counts.get(operation.name, -1) + 1
        names.append(f"{operation.name}:{number}")
    if program.trained:
        names.append("loss")
        names += [GRADIENT + name for name in program.gradient_names]
        names += [UPDATED + name for name in program.gradient_names]
        names += [*scalars, LOSS_SCALE]
    return names


class Anchors:
    """Collects the values of the anchored tensors over a host call.

    Args:
        anchored: by the user's name: the tensor's name, whether the mode was left open, the mode
            and the period.
        program: the compiled model.
        layout: the micro-batches of a call.

    Raises:
        poptorch.Error: a name that can be anchored to nothing here.

    """

    def __init__(self, anchored: Mapping[str, List], program: Program, layout: BatchLayout) -> None:
        self._layout = layout
        self._collectors: Dict[str, OutputCollector] = {}
        self._names: Dict[str, str] = {}
        known = [LOSS_SCALE]
        known += [kind + name for kind in (GRADIENT, UPDATED) for name in program.gradient_names]
        weights = program.parameter_names if program.trained else ()
        for short_name, (name, _, mode, period) in anchored.items():
            long_name = name
            if name in weights:
                long_name = self._updated(name, enums.OutputMode(mode))
                known.append(long_name)
            if long_name not in known:
                raise _impl.createPoptorchError(
                    f"anchorTensor: there is no tensor {name} to anchor {short_name} to; the "
                    f"simulator knows {', '.join(known)}."
                )
            self._names[short_name] = long_name
            self._collectors[short_name] = OutputCollector(
                layout, enums.OutputMode(mode), period or 1
            )

    def _updated(self, weight: str, mode: enums.OutputMode) -> str:
        """Return the name that a weight has once it is updated.

        PopART copies a weight to the host at the end of the backward pass, and at that of the
        call for `OutputMode.Final` (irlowering.cpp:3176-3210, 3495).
        """
        steps = self._layout.accumulation_steps
        if mode != enums.OutputMode.Final and steps > 1:
            raise _impl.createPoptorchError(
                f"anchorTensor: {weight} is anchored with OutputMode.{mode.name} and "
                f"{steps} gradient accumulation steps, which is not simulated: anchor it with "
                f"OutputMode.Final, or {UPDATED}{weight}."
            )
        return UPDATED + weight

    def add(self, position: Position, kind: str, values: Mapping[str, torch.Tensor]) -> None:
        """Take the values of one kind of tensor at a micro-batch, by the parameter's name."""
        for short_name, collector in self._collectors.items():
            long_name = self._names[short_name]
            if long_name.startswith(kind) and collector.wants(position):
                value = values.get(long_name[len(kind) :])
                if value is not None:
                    collector.add(position, value.clone())

    def add_updated(self, iteration: int, kind: str, values: Mapping[str, torch.Tensor]) -> None:
        """Take values that are there once for a device iteration, on every replica."""
        last = self._layout.accumulation_steps - 1
        for replica in range(self._layout.replicas):
            self.add(Position(iteration, last, replica), kind, values)

    def results(self) -> Dict[str, torch.Tensor]:
        """Return the values by the user's names."""
        return {name: collector.result() for name, collector in self._collectors.items()}
