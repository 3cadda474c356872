"""What memory predictions need of a module of the user's own."""

from __future__ import annotations

import dataclasses
from typing import List, Sequence

from torch import Tensor

from ipu_proxynorm.ipu import split_points, training_options
from ipu_proxynorm.memory import capture
from ipu_proxynorm.memory.options import precision_of_weights
from ipu_proxynorm.prediction.footprint import Footprint, run_layout
from ipu_proxynorm.run.foreign import load_module, module_config
from ipu_proxynorm.run.optimizer import create_optimizer


@dataclasses.dataclass(frozen=True)
class ForeignFootprint(Footprint):
    """A module as memory predictions see it; of ``config`` only ``ipu`` and ``optimizer`` count."""

    @property
    def points(self) -> List[str]:
        """Layers at which a stage may begin."""
        return split_points(self.model)


def foreign_footprint(
    target: str, inputs: Sequence[Tensor], overrides: Sequence[str], *, training: bool = True
) -> ForeignFootprint:
    """Trace a module of the user's own, forward and backward, without values.

    In training it returns its loss, or losses and others, or outputs whose sum is then taken for
    the loss.

    Args:
        target: see `run.foreign.load_module`.
        inputs: of one micro-batch, the micro-batch first; values do not matter.
        overrides: of ``ipu`` and ``optimizer``; without ``ipu.precision`` it keeps its types.
        training: with a backward pass, accumulators and optimiser state.

    Raises:
        UserError: there is no such module, it cannot be traced, or an override is of another thing.
    """
    model = load_module(target)
    config = module_config(target, model, inputs[0].shape[0], overrides)
    precision = config.ipu.precision if _given(overrides, "ipu.precision") else None
    options = training_options(config)
    captured = capture(
        model, inputs, training=training, precision=precision, options=options,
        splits=config.ipu.splits,
    )  # fmt: skip
    optimizer = create_optimizer(config.optimizer, model, config.ipu.images_per_update)
    layout = run_layout(config.ipu, options, optimizer)
    layout = dataclasses.replace(
        layout,
        precision=precision or precision_of_weights(model),
        optimizer=layout.optimizer if training else None,
        checkpoints=tuple(config.ipu.recomputation_checkpoints),
        eight_bit_io=False,
    )
    return ForeignFootprint(config, model, captured, layout)  # type: ignore[arg-type]


def _given(overrides: Sequence[str], key: str) -> bool:
    return any(override.partition("=")[0].strip() == key for override in overrides)
