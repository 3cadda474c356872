"""The layout of a run planned over IPUs, and the configuration that says so."""

from __future__ import annotations

import dataclasses
from typing import Callable, List, Optional, Tuple

from ipu_proxynorm.config import RunConfig, dump
from ipu_proxynorm.config.check import check, get
from ipu_proxynorm.ipu import resolve_splits
from ipu_proxynorm.memory import MIB, SAFE, find_chip, predict_capture
from ipu_proxynorm.memory.planner import SAME_SPEED, BatchLayout, Plan, Planner, Plans
from ipu_proxynorm.norm.spec import parse_norm_spec
from ipu_proxynorm.placement import ON_CHIP
from ipu_proxynorm.prediction.footprint import Footprint, footprint
from ipu_proxynorm.recomputation import ALL, NONE, NORM_ONLY, PIPELINE, STANDARD
from ipu_proxynorm.run.mixing import mixing_of
from ipu_proxynorm.stages import micro_batches_needed

#: The fewest I/O tiles that PopTorch takes.
IO_TILES = 32
#: A plan's recomputation as `ipu.recomputation` names it; not named: PopTorch's default.
_RECOMPUTATIONS = {"standard": STANDARD, "checkpoints": ALL}
#: What `Classification` calls the network that it wraps.
_PREFIX = "model."


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """Plans for a run, fastest first, beside the run as its configuration has it."""

    config: RunConfig
    given: Plan
    plans: Plans
    ipus: int
    chip: str

    @property
    def best(self) -> Plan:
        """The fastest plan that fits."""
        return self.plans.fitting[0]


def global_batch(config: RunConfig) -> int:
    """Return the images behind one weight update of a run."""
    return config.ipu.images_per_update


def plan_run(
    config: RunConfig,
    ipus: int,
    batch: int,
    keep: int = 4,
    progress: Optional[Callable[[int, int], None]] = None,
) -> RunPlan:
    """Return the fastest layouts of a run over up to ``ipus`` IPUs that are predicted to fit.

    Args:
        config: the configuration of the run; its layout is compared with, and not kept.
        ipus: how many there are.
        batch: images behind one weight update, exactly.
        keep: how many plans.
        progress: called with the layouts looked at and their number.

    Raises:
        UserError: no IPU, or a batch that cannot be dealt out.
    """
    ipu = dataclasses.replace(config.ipu, available_memory_proportion=one_proportion(config))
    whole = footprint(dataclasses.replace(config, ipu=ipu), splits=[])
    planner = Planner(whole.capture, whole.points, whole.layout)
    plans = planner.plan(batch, ipus, least_micro_batch(config), keep=keep, progress=progress)
    return RunPlan(config, as_given(whole, planner, config), plans, ipus, config.ipu.chip)


def least_micro_batch(config: RunConfig) -> int:
    """Return the least images of a micro-batch that mix-up and cut-mix can mix."""
    mixing = mixing_of(config.training)
    return 4 if mixing.mixup and mixing.cutmix else 2 if mixing.mixup or mixing.cutmix else 1


def as_given(whole: Footprint, planner: Planner, config: RunConfig) -> Plan:
    """Return what is predicted for the layout that the configuration has."""
    ipu = config.ipu
    return planner.evaluate(
        BatchLayout(
            len(ipu.splits) + 1,
            ipu.replication_factor,
            ipu.micro_batch_size,
            ipu.gradient_accumulation,
        ),
        [_PREFIX + split for split in resolve_splits(whole.model, ipu.splits)],
        [_PREFIX + layer for layer in ipu.recomputation_checkpoints],
        ipu.optimizer_state,
    )


def layer_names(names: Tuple[str, ...]) -> Tuple[str, ...]:
    """Return layers as a configuration names them."""
    return tuple(name[len(_PREFIX) :] if name.startswith(_PREFIX) else name for name in names)


def one_proportion(config: RunConfig) -> Optional[List[float]]:
    """Return the available memory proportion for stages not known yet: the largest there is."""
    given = config.ipu.available_memory_proportion
    return None if given is None else [max(given)]


def planned_config(config: RunConfig, plan: Plan) -> RunConfig:
    """Return the run's configuration with the plan's layout.

    Of what it asks of the compiler, what the layout does not allow is left out.
    """
    overlapped = plan.prediction.layout.overlap_io
    ipu = dataclasses.replace(
        config.ipu,
        micro_batch_size=plan.batch.micro_batch,
        replication_factor=plan.batch.replicas,
        gradient_accumulation=plan.batch.gradient_accumulation,
        splits=list(layer_names(plan.splits)),
        recomputation_checkpoints=list(layer_names(plan.checkpoints)),
        optimizer_state=plan.optimizer_location,
        recomputation=_RECOMPUTATIONS.get(plan.recomputation),
        available_memory_proportion=one_proportion(config)
        if plan.proportion is None
        else [plan.proportion],
        execution="sharded" if overlapped else "pipelined",
        overlap_io=overlapped,
        merge_all_reduce=config.ipu.merge_all_reduce and plan.batch.replicas > 1,
    )
    planned = dataclasses.replace(config, ipu=ipu)
    check(planned)
    return planned


def recomputation(plan: Plan) -> str:
    """Return a plan's recomputation as a configuration names it."""
    if plan.batch.stages > 1 and plan.recomputation == "stage":
        return PIPELINE
    names = {**_RECOMPUTATIONS, "norms": NORM_ONLY}
    return names.get(plan.recomputation, NONE)


def planned_yaml(config: RunConfig, plan: Plan) -> str:
    """Return the planned configuration as YAML, the arithmetic of its layout on top."""
    batch, verdict = plan.batch, plan.prediction.verdict
    planned = planned_config(config, plan)
    planned.environment = {
        name: written
        for name, written in config.environment.items()
        if get(planned, name) == get(config, name)
    }
    return (
        f"# Planned with ipu-proxynorm plan for {batch.ipus} IPUs ({config.ipu.chip}).\n"
        f"#   IPUs: {batch.stages} (stages) x {batch.replicas} (replicas) = {batch.ipus}\n"
        f"#   images per weight update: {batch.micro_batch} (micro-batch) x {batch.replicas} "
        f"(replicas) x {batch.gradient_accumulation} (accumulation) = {batch.global_batch}\n"
        f"#   predicted: {plan.images_per_second:,.0f} images/s, IPU {verdict.ipu} fullest at "
        f"{verdict.utilisation:.0%} of its memory\n"
        f"{dump(planned, as_written=True)}"
    )


def nothing_fits(planned: RunPlan) -> str:
    """Return the sentence that says what comes nearest to fitting, and what would help."""
    nearest = planned.plans.nearest
    if nearest is None:
        return "nothing fits"
    batch, verdict = nearest.batch, nearest.prediction.verdict
    over = verdict.utilisation * find_chip(planned.chip).sram_bytes / MIB
    return (
        f"nothing fits on {planned.ipus} IPUs ({planned.chip}) with {batch.global_batch} images an "
        f"update: nearest are {batch.stages} stages at micro-batch {batch.micro_batch} with the "
        f"optimiser state {nearest.optimizer_location}, IPU {verdict.ipu} taking {over:,.0f} MiB "
        f"({verdict.utilisation:.0%} of its memory, at most 85 % wanted); give more IPUs, a "
        f"smaller network or image, or a lower precision (ipu.precision=16.16)"
    )


def stage_checkpoints(plan: Plan) -> List[List[str]]:
    """Return the layers of each stage whose outputs are checkpoints."""
    capture = plan.prediction.capture
    found: List[List[str]] = [[] for _ in plan.stage_cycles]
    for layer in plan.checkpoints:
        inside = (o.stage for o in capture.operators if f"{o.layer}.".startswith(f"{layer}."))
        found[next(inside)] += layer_names((layer,))
    return found


def reasons(planned: RunPlan) -> List[str]:
    """Return why the best plan is the best, a sentence each."""
    best, fitting = planned.best, planned.plans.fitting
    batch, found = best.batch, []
    if len(fitting) > 1:
        second = fitting[1]
        gain = best.images_per_second / second.images_per_second - 1
        other = (
            f"({second.batch.stages} x {second.batch.replicas}, micro-batch "
            f"{second.batch.micro_batch})"
        )
        if gain >= 0:
            found.append(f"{gain:.0%} more images/s than the runner-up {other}")
        else:
            found.append(
                f"{-gain:.0%} fewer images/s than the fastest {other}, which is less than the "
                f"model's error ({SAME_SPEED - 1:.0%}), and simpler: fewer stages or checkpoints"
            )
    if best.recomputation in _RECOMPUTATIONS:
        kind = _RECOMPUTATIONS[best.recomputation]
        found.append(f"ipu.recomputation={kind}: without it the micro-batch would have to be less")
    if best.proportion is not None:
        found.append(
            f"ipu.available_memory_proportion={best.proportion:g}: the largest with which it fits; "
            f"what it costs in time is not modelled"
        )
    if batch.stages == 1:
        found.append("the network fits on one IPU: no pipeline, no bubble")
    else:
        found.append(
            f"{batch.stages} stages, balanced to {best.balance:.0%}; the pipeline fills and drains "
            f"in {batch.bubble:.0%} of the time ({batch.gradient_accumulation} micro-batches an "
            f"update, at least {micro_batches_needed(batch.stages, training=True)} needed)"
        )
    if best.checkpoints:
        found.append("checkpoints: without them a stage would recompute more than it has room for")
    if best.optimizer_location != ON_CHIP:
        found.append(f"optimiser state {best.optimizer_location}: on chip it would not fit")
    if batch.ipus < planned.ipus:
        found.append(f"{planned.ipus - batch.ipus} IPUs stay idle: more would not be faster")
    found += _offers(planned)
    if "bn" in planned.config.model.norm and batch.micro_batch != planned.given.batch.micro_batch:
        found.append(
            f"Batch Norm sees micro-batches of {batch.micro_batch} instead of "
            f"{planned.given.batch.micro_batch}, which changes what is trained"
        )
    return found


def _offers(planned: RunPlan) -> List[str]:
    """Return what could be asked of the compiler besides, a sentence each."""
    best, config, found = planned.best, planned.config, []
    layout = best.prediction.layout
    if best.batch.stages == 1 and not layout.overlap_io:
        other = dataclasses.replace(layout, overlap_io=True, io_tiles=layout.io_tiles or IO_TILES)
        prediction = predict_capture(best.prediction.capture, other)
        now = best.prediction.throughput.images_per_second
        gain = prediction.throughput.images_per_second / now - 1
        if prediction.verdict.utilisation <= SAFE and gain >= 0.01:
            found.append(
                f"{gain:.0%} more with overlapped transfers: ipu.overlap_io=true "
                f"ipu.io_tiles={other.io_tiles} ipu.execution=sharded (IPU "
                f"{prediction.verdict.ipu} then {prediction.verdict.utilisation:.0%} full)"
            )
    groups = parse_norm_spec(config.model.norm).groups
    if groups is not None and groups > 1 and config.model.channel_grouping == "contiguous":
        found.append(
            "model.channel_grouping=strided is Graphcore's faster Group Norm; by how much is not "
            "public, and weights of one grouping are wrong with the other"
        )
    return found
