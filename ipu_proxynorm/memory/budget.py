"""Adds up what fills each IPU, every term in bytes by itself."""

from __future__ import annotations

import dataclasses
from typing import Dict, List, Mapping, Sequence, Tuple

import numpy as np

from ipu_proxynorm.chip import Chip, find_chip
from ipu_proxynorm.memory import liveness, moments
from ipu_proxynorm.memory.calibration import Parameters
from ipu_proxynorm.memory.fullest import fullest_moment
from ipu_proxynorm.memory.graph import Capture, OperatorRecord
from ipu_proxynorm.memory.kept import kept
from ipu_proxynorm.memory.layout import Layout
from ipu_proxynorm.placement import OFF_CHIP, SHARDED

#: The terms of a budget, in the order in which tables and bars show them.
TERMS = (
    "weights",
    "gradient_accumulators",
    "optimizer_state",
    "stash",
    "code",
    "activations",
    "temporaries",
    "io_buffers",
    "replication_buffers",
    "io_tiles",
    "tile_imbalance",
)

Array = np.ndarray  # of float64, one value for each moment

# PopART's minElementsForReplicatedTensorSharding: smaller tensors stay whole.
_SMALLEST_SHARD = 8192
# TensorFlow's max_cross_replica_sum_buffer_size in Graphcore's examples.
_REDUCTION_BUFFER = 10 << 20
#: Where poplibs maps a tensor linearly, a tile gets at least so much of it.
LEAST_BYTES_A_TILE = 128
# Control code's share of an operator's control code and vertex state: 11 of 115 kB for one program
# in a profiled EfficientNet (popliner's tests: 8.9 MB for 832 programs).
_CONTROL_CODE = 0.1


@dataclasses.dataclass(frozen=True)
class IpuBudget:
    """What fills one IPU of a replica.

    Attributes:
        ipu: its number within the replica.
        stages: pipeline stages on it.
        terms: bytes by name, all of `TERMS`.
        streaming_memory: bytes in Streaming Memory by name (``optimizer_state``, ``weights``).
        capacity: SRAM of the IPU, bytes.
    """

    ipu: int
    stages: Tuple[int, ...]
    terms: Dict[str, int]
    streaming_memory: Dict[str, int]
    capacity: int

    @property
    def used(self) -> int:
        """Bytes of all terms."""
        return sum(self.terms.values())

    @property
    def utilisation(self) -> float:
        """Bytes used over capacity: above 1, the fullest tile is over."""
        return self.used / self.capacity


def stash_depth(schedule: str, stage: int, stages: int) -> int:
    """Return for how many micro-batches a stage keeps what its backward pass needs.

    PopART: 2·(stages to the end) + 1, none on the last. TensorFlow: a queue of twice (grouped) or
    once (interleaved) the stages to the end. Sequential: one micro-batch at a time.

    Source: PopART ``pipeline.cpp``; TensorFlow-IPU ``pipeline_util.cc``.
    """
    to_end = stages - 1 - stage
    if to_end == 0:
        return 0
    return {"pipelined": 2 * to_end + 1, "grouped": 2 * to_end, "interleaved": to_end}.get(
        schedule, 1
    )


@dataclasses.dataclass(frozen=True)
class IpuLoad:
    """What lies on one IPU, before any calibration.

    Attributes:
        ipu: its number within the replica.
        stages: pipeline stages on it.
        tensors: terms that are sizes of tensors, bytes.
        streaming_memory: bytes in Streaming Memory.
        io_tiles: bytes of the tiles set aside.
        capacity: SRAM, bytes.
        products: distinct convolutions and matrix products, each pass counted.
        others: distinct other operators, each by its weight (see `operator_weights`).
        calls: operators, each by its weight.
        live: bytes of activations and gradients at each moment of a micro-batch.
        temporaries: what the convolution or product at that moment may take as poplibs plans it:
            a row of equally likely bytes for each moment.
        planned: the number of that convolution or product; moments of one have one plan.
        exchange: Poplar's ``internalExchangeOptimisationTarget``.
        unevenness: how uneven the chip's tiles are, as a multiple of a Mk2; see `Chip`.
    """

    ipu: int
    stages: Tuple[int, ...]
    tensors: Dict[str, int]
    streaming_memory: Dict[str, int]
    io_tiles: int
    capacity: int
    products: int
    others: float
    calls: float
    live: Array
    temporaries: Array
    planned: Array
    exchange: str
    unevenness: float = 1.0


def ipu_loads(capture: Capture, layout: Layout) -> List[IpuLoad]:
    """Return what lies on every IPU of a replica, in order."""
    if layout.precision == "16.32":
        capture = capture.with_weight_copies
    return [_ipu_load(capture, layout, ipu) for ipu in sorted(set(capture.stage_ipus))]


def _ipu_load(capture: Capture, layout: Layout, ipu: int) -> IpuLoad:
    chip = find_chip(layout.chip)
    stages = tuple(s for s, on in enumerate(capture.stage_ipus) if on == ipu)
    weights, streamed = weight_terms(capture, layout, stages)
    sums = capture.training and layout.replicas > 1
    products, others, calls = _code_kinds(capture, stages, chip)
    by_stage = [
        moments.of_stage(capture, s, keeping(capture, layout, s), tuple(layout.checkpoints))
        for s in stages
    ]
    bound = layout.proportion(ipu) * chip.tile_bytes
    element_bytes = 4 if layout.precision == "32.32" else 2
    needed = moments.temporaries_of(
        capture, stages, chip.tiles, bound, element_bytes, layout.half_partials
    )
    temporaries, planned = needed.at(np.concatenate([found.operators for found in by_stage]))
    return IpuLoad(
        ipu=ipu,
        stages=stages,
        tensors={
            **weights,
            "stash": sum(stash_bytes(capture, layout, stage) for stage in stages),
            "io_buffers": io_bytes(capture, layout, stages),
            "replication_buffers": min(_REDUCTION_BUFFER, weights["weights"]) if sums else 0,
        },
        streaming_memory=streamed,
        io_tiles=layout.io_tiles * chip.tile_bytes,
        capacity=chip.sram_bytes,
        products=products,
        others=others,
        calls=calls,
        live=np.concatenate([found.live for found in by_stage]),
        temporaries=temporaries,
        planned=planned,
        exchange=layout.exchange,
        unevenness=chip.unevenness,
    )


def operator_weights(
    capture: Capture, operators: Sequence[OperatorRecord], chip: Chip
) -> Dict[int, float]:
    """Return the code and vertex state of operators, by index; a large one's are 1.

    Convolutions and matrix products are planned over all tiles. Another operator has vertices where
    its largest tensor is (its result, if pointwise), at least 128 bytes of it to a tile (poplibs,
    where it maps tensors linearly), so that one of channels alone (affine parameters, a proxy's
    moments) has few; every tile has the control code.
    """
    weights = {}
    for operator in operators:
        if operator.passes:
            weights[operator.index] = 1.0
            continue
        moved = operator.outputs if operator.is_pointwise else ()
        moved = moved or (*operator.inputs, *operator.outputs)
        largest = max((capture.tensors[index].bytes for index in moved), default=0)
        share = min(1.0, largest / (LEAST_BYTES_A_TILE * chip.tiles))
        weights[operator.index] = _CONTROL_CODE + (1 - _CONTROL_CODE) * share
    return weights


def code_kinds(
    operators: Sequence[OperatorRecord], weights: Mapping[int, float]
) -> Tuple[int, float, float]:
    """Return distinct products (each pass counted), distinct other operators, and all operators.

    Equal operators share their code (outlining), whatever layer they are of. The latter two are
    counted by their weights, see `operator_weights`.
    """
    distinct = {o.signature: o for o in operators}.values()
    return (
        sum(o.passes for o in distinct),
        sum(weights[o.index] for o in distinct if not o.passes),
        sum(weights[o.index] for o in operators),
    )


@kept
def _code_kinds(capture: Capture, stages: Tuple[int, ...], chip: Chip) -> Tuple[int, float, float]:
    operators = [o for o in capture.operators if o.stage in stages]
    return code_kinds(operators, operator_weights(capture, operators, chip))


def code_bytes(
    operators: Sequence[OperatorRecord], weights: Mapping[int, float], parameters: Parameters
) -> float:
    """Return vertex, control and exchange code and vertex state of operators on one IPU.

    With what any program has; for the exchange target ``cycles``.
    """
    return _code(*code_kinds(operators, weights), parameters)


def _code(
    products: int, others: float, calls: float, parameters: Parameters, factor: float = 1.0
) -> float:
    return parameters.program + factor * (
        parameters.code_product * products
        + parameters.code_other * others
        + parameters.code_call * calls
    )


def _exchange_factor(exchange: str, parameters: Parameters) -> float:
    """Return the factor on code of Poplar's exchange target; ``balanced`` is half-way."""
    saved = 1 - parameters.exchange_memory
    return 1 - saved * {"cycles": 0.0, "balanced": 0.5, "memory": 1.0}[exchange]


def weigh(load: IpuLoad, parameters: Parameters) -> IpuBudget:
    """Return the budget of an IPU by one calibration.

    Activations and temporaries are those of the fullest moment: see `fullest_moment`.
    """
    activations, temporaries = fullest_moment(
        parameters.live * load.live, parameters.temporaries * load.temporaries, load.planned
    )
    terms: Dict[str, float] = {
        **load.tensors,
        "code": _code(
            load.products,
            load.others,
            load.calls,
            parameters,
            _exchange_factor(load.exchange, parameters),
        ),
        "activations": activations,
        "temporaries": temporaries,
    }
    terms["tile_imbalance"] = load.unevenness * (parameters.imbalance - 1) * sum(terms.values())
    terms["io_tiles"] = load.io_tiles
    return IpuBudget(
        ipu=load.ipu,
        stages=load.stages,
        terms={name: round(float(terms[name])) for name in TERMS},
        streaming_memory=load.streaming_memory,
        capacity=load.capacity,
    )


def ipu_budgets(capture: Capture, layout: Layout, parameters: Parameters) -> List[IpuBudget]:
    """Return the budget of every IPU of a replica, in order, by one calibration."""
    return [weigh(load, parameters) for load in ipu_loads(capture, layout)]


def keeping(capture: Capture, layout: Layout, stage: int) -> str:
    """Return how a stage comes by what its backward pass reads; see `liveness.stage_moments`.

    One of ``live``, ``stash``, ``recompute``, ``before`` (only what is before the last checkpoint
    is computed again), ``standard`` and ``norms``.
    """
    last, kind = stage == capture.stages - 1, layout.recomputation
    if kind in ("standard", "norms"):
        if capture.stages == 1 or layout.schedule == "sequential":
            return kind
        kind = "stage"  # in a pipeline PopART looks at no other kinds: pipeline.cpp:1505
    if kind == "checkpoints":
        return "before" if last and layout.keeps_last_segment else "recompute"
    if kind == "stage" and capture.stages > 1:
        if not last:
            return "recompute"
        if liveness.stage_tensors(capture, stage, layout.checkpoints).checkpoints:
            return "before"
    return "stash" if stash_depth(layout.schedule, stage, capture.stages) > 1 else "live"


def stash_bytes(capture: Capture, layout: Layout, stage: int) -> int:
    """Return what a stage keeps for micro-batches in flight.

    With recomputation: its inputs and checkpoints, else all that its backward pass reads, for each
    micro-batch of the stash; where there is no stash, inputs and checkpoints of the one at work.
    """
    if not capture.training:
        return 0
    depth = stash_depth(layout.schedule, stage, capture.stages)
    own = liveness.stage_tensors(capture, stage, layout.checkpoints)
    how = keeping(capture, layout, stage)
    if how not in ("stash", "recompute"):
        return 0
    kept = own.saved if how == "stash" else (*own.inputs, *own.checkpoints)
    return max(depth, 1) * liveness.bytes_of(capture, kept)


def weight_terms(
    capture: Capture, layout: Layout, stages: Sequence[int]
) -> Tuple[Dict[str, int], Dict[str, int]]:
    """Return weights, accumulators and optimiser state: bytes in SRAM, bytes in Streaming Memory.

    Weights and buffers have the precision's type; accumulators exist with gradient accumulation
    (or combined with the momentum). Sharded state is divided over the replicas, tensors below 8192
    elements apart.
    """
    terms = {"weights": 0, "gradient_accumulators": 0, "optimizer_state": 0}
    streamed = {"optimizer_state": 0, "weights": 0}
    optimizer = layout.optimizer if capture.training else None
    for stage in stages:
        for tensor in capture.buffers(stage):
            terms["weights"] += tensor.bytes
        for tensor in capture.parameters(stage):
            elements = _elements(tensor.shape)
            terms["weights"] += elements * layout.weight_bytes
            if optimizer is None:
                continue
            if layout.gradient_accumulation > 1 or optimizer.combined:
                terms["gradient_accumulators"] += elements * optimizer.accumulator_bytes
            state = elements * optimizer.state_bytes
            if layout.optimizer_location == OFF_CHIP:
                streamed["optimizer_state"] += state
            elif layout.optimizer_location == SHARDED and elements >= _SMALLEST_SHARD:
                terms["optimizer_state"] += -(-state // layout.replicas)
            else:
                terms["optimizer_state"] += state
    return terms, streamed


def _elements(shape: Sequence[int]) -> int:
    elements = 1
    for size in shape:
        elements *= size
    return elements


def io_bytes(capture: Capture, layout: Layout, stages: Sequence[int]) -> int:
    """Return what waits for the host: inputs that these stages read first, outputs of the last.

    Source: PopART's transform ``HostIOSetup``: an input is loaded in its lowest consumer's stage.
    """
    inputs = [t for stage in stages for t in capture.inputs(stage)]
    total = sum(_elements(t.shape) if layout.eight_bit_io else t.bytes for t in inputs)
    if capture.stages - 1 in stages:
        total += sum(capture.tensors[i].bytes for i in capture.outputs)
    return total
