"""What decides memory apart from the model: placement, precision, optimiser, replicas."""

from __future__ import annotations

import dataclasses
from typing import Any, Optional, Tuple, Union

import torch

from ipu_proxynorm.chip import Chip, find_chip
from ipu_proxynorm.errors import UserError, unknown_name
from ipu_proxynorm.placement import ON_CHIP, PLACEMENTS
from ipu_proxynorm.precision import PRECISIONS

SCHEDULES = ("pipelined", "grouped", "interleaved", "sequential")
RECOMPUTATIONS = ("none", "stage", "checkpoints", "standard", "norms")
EXCHANGES = ("cycles", "balanced", "memory")


@dataclasses.dataclass(frozen=True)
class OptimizerMemory:
    """Bytes that an optimiser keeps for each trained element.

    Attributes:
        name: as shown.
        accumulator_bytes: of the gradient accumulator; it exists with gradient accumulation only,
            unless ``combined``.
        state_bytes: the bytes of all state tensors together.
        combined: accumulator and momentum are one tensor, which always exists.
    """

    name: str
    accumulator_bytes: int
    state_bytes: int
    combined: bool = False


def optimizer_memory(
    name: str, *, state_bytes: int = 4, accumulator_bytes: int = 4, momentum: bool = True
) -> OptimizerMemory:
    """Return what an optimiser keeps, by its name.

    Args:
        name: sgd, sgd_combined, adam, adamw, lamb, rmsprop or lars.
        state_bytes: the bytes of an element of a state tensor.
        accumulator_bytes: the bytes of an element of the gradient accumulator.
        momentum: for sgd and rmsprop.

    Raises:
        UserError: the name is unknown.
    """
    tensors = {
        "sgd": int(momentum),
        "sgd_combined": 0,
        "adam": 2,
        "adamw": 2,
        "lamb": 2,
        "rmsprop": 1 + int(momentum),
        "lars": 1,
    }
    if name not in tensors:
        raise unknown_name("optimiser", name, list(tensors))
    return OptimizerMemory(
        name, accumulator_bytes, tensors[name] * state_bytes, combined=name == "sgd_combined"
    )


_KNOWN = ("sgd", "adam", "adamw", "lamb", "rmsprop")


def _element(optimizer: Any, attribute: str) -> int:
    dtype = getattr(optimizer, attribute, torch.float32)
    return 2 if dtype == torch.float16 else 4


def read_optimizer(optimizer: Any, weight_bytes: int = 4) -> OptimizerMemory:
    """Return what a PopTorch (or torch) optimiser keeps on the device.

    Accumulators and states are float32 unless the optimiser says otherwise; combined SGD's one
    tensor has the weights' type.

    Source: PopTorch 3.4's ``optim.py``.
    """
    bases = [cls.__name__.lower() for cls in type(optimizer).__mro__]  # a user's own has a base
    name = next((base for base in bases if base in _KNOWN), bases[0])
    groups = getattr(optimizer, "param_groups", [{}])
    momentum = any(group.get("momentum") for group in groups)
    accumulator = _element(optimizer, "accum_type")
    if getattr(optimizer, "use_combined_accum", False):
        return OptimizerMemory("sgd_combined", weight_bytes, 0, combined=True)
    if name == "sgd":
        velocity = _element(optimizer, "velocity_accum_type") if momentum else 0
        return OptimizerMemory(name, accumulator, velocity)
    if name in ("adam", "adamw", "lamb"):
        first = _element(optimizer, "first_order_momentum_accum_type")
        return OptimizerMemory(
            name, accumulator, first + _element(optimizer, "second_order_momentum_accum_type")
        )
    if name == "rmsprop":
        centred = any(group.get("centered") for group in groups)
        state = _element(optimizer, "second_order_momentum_accum_type")
        state += 4 * centred
        state += _element(optimizer, "first_order_momentum_accum_type") * momentum
        return OptimizerMemory(name, accumulator, state)
    raise UserError(
        f"optimiser {type(optimizer).__name__}: its state is not known; expected SGD, Adam, AdamW, "
        "RMSprop or LAMB, or memory.OptimizerMemory(...)"
    )


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a program lies on its IPUs.

    Attributes:
        chip: the kind of IPU.
        precision: ``activations.weights`` in bits: ``16.16``, ``16.32`` (float32 weights, cast
            where they are used) or ``32.32``.
        optimizer: None in inference.
        optimizer_location: ``on-chip``, ``off-chip`` (Streaming Memory) or ``sharded``.
        replicas: copies of the model.
        gradient_accumulation: micro-batches of a replica per weight update.
        schedule: ``pipelined`` (PopART), ``grouped``, ``interleaved`` (TensorFlow's pipelines) or
            ``sequential`` (one micro-batch at a time through all stages).
        recomputation: ``none``; ``stage``: each stage but the last from its inputs and the model's
            own checkpoints, of the last what is before its last checkpoint (PopTorch's default when
            pipelined); ``checkpoints``: every stage (PopART's RecomputeAll); ``standard``: what
            PopART chooses; ``norms``: outputs of norms.
        keeps_last_segment: with ``checkpoints``, what follows the last one is not computed again:
            PopART's way where recomputation is implicit (``recompute.cpp:175``).
        checkpoints: layers whose outputs are kept, beside those that the model marks.
        available_memory_proportion: the available memory proportion of each IPU; one value for all.
        half_partials: convolutions sum in float16 rather than float32.
        io_tiles: tiles of each IPU set aside for input and output.
        overlap_io: what goes to and from the host travels while the IPU computes.
        stable_norm: norms take their variance in two passes.
        exchange: Poplar's ``internalExchangeOptimisationTarget``.
        eight_bit_io: images arrive as uint8.
    """

    chip: Union[str, Chip] = "mk2"
    precision: str = "16.16"
    optimizer: Optional[OptimizerMemory] = None
    optimizer_location: str = ON_CHIP
    replicas: int = 1
    gradient_accumulation: int = 1
    schedule: str = "pipelined"
    recomputation: str = "stage"
    keeps_last_segment: bool = False
    checkpoints: Tuple[str, ...] = ()
    available_memory_proportion: Tuple[float, ...] = (0.6,)
    half_partials: bool = False
    io_tiles: int = 0
    overlap_io: bool = False
    stable_norm: bool = False
    exchange: str = "cycles"
    eight_bit_io: bool = False

    def __post_init__(self) -> None:
        """Refuse what no program can be.

        Raises:
            UserError: names the field, its value and what was expected.
        """
        find_chip(self.chip)
        for field, choices in (
            ("precision", list(PRECISIONS)),
            ("optimizer_location", list(PLACEMENTS)),
            ("schedule", SCHEDULES),
            ("recomputation", RECOMPUTATIONS),
            ("exchange", EXCHANGES),
        ):
            value = getattr(self, field)
            if value not in choices:
                raise unknown_name(field, str(value), choices)
        for field in ("replicas", "gradient_accumulation"):
            if getattr(self, field) < 1:
                raise UserError(f"{field}={getattr(self, field)}: expected at least 1")
        if not 0 <= self.io_tiles < find_chip(self.chip).tiles:
            raise UserError(
                f"io_tiles={self.io_tiles}: expected 0 to {find_chip(self.chip).tiles - 1}, fewer "
                f"than the tiles of a {find_chip(self.chip).name}"
            )
        for proportion in self.available_memory_proportion:
            if not 0 <= proportion <= 1:
                raise UserError(f"available_memory_proportion={proportion}: expected 0 to 1")

    @property
    def weight_bytes(self) -> int:
        """Bytes of an element of a weight."""
        return PRECISIONS[self.precision].weight_bytes

    def proportion(self, ipu: int) -> float:
        """Return the available memory proportion of an IPU."""
        given = self.available_memory_proportion
        return given[min(ipu, len(given) - 1)]
