"""Checks which values of different keys go together; each key checks its own limits."""

from __future__ import annotations

import math
from typing import Any

import torch

from ipu_proxynorm.config.compiler_options import check_options
from ipu_proxynorm.config.keys import walk
from ipu_proxynorm.config.optimizers import check_optimizer
from ipu_proxynorm.config.schema import IPUConfig, RunConfig, ScheduleConfig
from ipu_proxynorm.config.text import PATHS
from ipu_proxynorm.errors import UserError, blame
from ipu_proxynorm.norm.spec import parse_norm_spec
from ipu_proxynorm.placement import SHARDED
from ipu_proxynorm.precision import PRECISIONS
from ipu_proxynorm.recomputation import ALL, NONE, PIPELINE, RECOMPUTATIONS
from ipu_proxynorm.stages import micro_batches_needed


class UnsuitableBatch(UserError):
    """The division of the batch does not suit the rest of a configuration; another one may."""


def get(config: RunConfig, name: str) -> Any:
    """Return the value of a dotted key."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def check(config: RunConfig) -> None:
    """Refuse values that no run can have.

    Raises:
        UnsuitableBatch: micro-batches are too few for the pipeline, or too small to mix images.
        UserError: names the key, its value, what was expected and what to change.
    """
    for name, _, entry in walk(RunConfig):
        value = get(config, name)
        if value is not None:
            entry.metadata["limits"].refuse(name, value)
        if not _is_text(str(value)):
            raise UserError(
                f"{name}={_shown(str(value))}: expected UTF-8, as a run's configuration is kept in "
                f"it; rename what has other bytes in its name, or set LANG to a UTF-8 locale"
            )
    with blame("model.norm", config.model.norm):
        parse_norm_spec(config.model.norm)
    if not 0 <= config.seed < 2**63:
        raise UserError(f"seed={config.seed}: expected an integer from 0 to 2**63 - 1")
    if config.name in ("", ".", "..") or "/" in config.name or len(config.name.encode()) > 255:
        raise UserError(
            f"name={_shown(config.name)}: expected a folder's name without '/', of up to 255 bytes"
        )
    for name in PATHS:
        value = get(config, name)
        parts = (value or "").split("/")
        if any(len(part.encode()) > 255 for part in parts) or "\0" in (value or ""):
            raise UserError(
                f"{name}={_shown(value)}: expected a path whose folders and files have names of "
                f"up to 255 bytes"
            )
    check_pipeline(config)
    check_recomputation(config.ipu)
    check_compiler(config.ipu)
    check_optimizer(config.optimizer)
    check_schedule(config.schedule, config.training.epochs)
    check_precision(config)
    check_mixing(config)
    if config.training.new_head and config.training.init_from is None:
        raise UserError(
            "training.new_head=True: without training.init_from the whole network is new; set "
            "training.init_from to what the rest is taken from, or leave it out"
        )
    if config.training.average_from_epoch > config.training.epochs:
        raise UserError(
            f"training.average_from_epoch={config.training.average_from_epoch}: expected at most "
            f"training.epochs ({config.training.epochs})"
        )


def _is_text(value: str) -> bool:
    """Tell whether a value can be written: bytes that are no UTF-8 cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: str, most: int = 60) -> str:
    return repr(value if len(value) <= most else f"{value[:most]}...")


def check_pipeline(config: RunConfig) -> None:
    """Refuse a pipeline that is not filled, and proportions of memory that fit no stages."""
    stages = len(config.ipu.splits) + 1
    proportions = config.ipu.available_memory_proportion
    if proportions is not None and len(proportions) not in (1, stages):
        raise UserError(
            f"ipu.available_memory_proportion={proportions}: expected a number, or one for each "
            f"of the {stages} stages that ipu.splits={config.ipu.splits} makes"
        )
    if any(not 0 <= proportion <= 1 for proportion in proportions or []):
        raise UserError(
            f"ipu.available_memory_proportion={proportions}: expected numbers from 0 to 1"
        )
    least, given = micro_batches_needed(stages, training=True), config.ipu.gradient_accumulation
    if config.ipu.execution == "pipelined" and stages > 1 and given < least:
        raise UnsuitableBatch(
            f"ipu.gradient_accumulation={given}: a pipeline of {stages} stages (ipu.splits="
            f"{config.ipu.splits}) needs at least {least} (2S-1) micro-batches in flight; "
            f"set ipu.gradient_accumulation={least} or more, or remove a split"
        )
    if config.ipu.optimizer_state == SHARDED and config.ipu.replication_factor == 1:
        raise UserError(
            "ipu.optimizer_state=sharded: there is one replica, and nothing to shard over; set "
            "ipu.replication_factor=2 or more, or ipu.optimizer_state=off-chip"
        )


def check_recomputation(ipu: IPUConfig) -> None:
    """Refuse recomputation that PopART does not have for the layout, and checkpoints without it."""
    stages, kind = len(ipu.splits) + 1, ipu.recomputation
    pipeline = stages > 1 and ipu.execution == "pipelined"
    alone = "one IPU" if stages == 1 else "ipu.execution=sharded"
    if kind == PIPELINE and not pipeline:
        raise UserError(
            f"ipu.recomputation={kind}: on {alone} there is no pipeline to recompute; set it to "
            f"standard, norm-only or all, or leave it out"
        )
    if pipeline and kind not in (None, NONE, PIPELINE):
        raise UserError(
            f"ipu.recomputation={kind}: in a pipeline PopART recomputes stages or nothing; leave "
            f"it out, or set ipu.recomputation=none"
        )
    if not ipu.recomputation_checkpoints:
        return
    given = f"ipu.recomputation_checkpoints={ipu.recomputation_checkpoints}"
    if kind is None and not pipeline:
        raise UserError(
            f"{given}: on {alone} PopTorch recomputes nothing by itself; set ipu.recomputation="
            f"{ALL}, or leave the checkpoints out"
        )
    if kind is not None and not RECOMPUTATIONS[kind].checkpoints:
        raise UserError(
            f"{given}: ipu.recomputation={kind} ({RECOMPUTATIONS[kind].note}) pays no heed to "
            f"them; set ipu.recomputation={PIPELINE if pipeline else ALL}, or leave them out"
        )


def check_compiler(ipu: IPUConfig) -> None:
    """Refuse session and engine options that there are not, and such as do not go together."""
    check_options(ipu.popart, ipu.engine, ipu.deterministic_workers)
    if ipu.overlap_io and ipu.io_tiles is None:
        raise UserError(
            "ipu.overlap_io=True: it needs tiles set aside for input and output; set "
            "ipu.io_tiles, e.g. 32"
        )
    if ipu.overlap_io and ipu.execution == "pipelined":
        raise UserError(
            "ipu.overlap_io=True: PopTorch overlaps input and output with no pipeline, not even "
            "of one stage; set ipu.execution=sharded, or leave it out"
        )
    if ipu.merge_all_reduce and ipu.replication_factor == 1:
        raise UserError(
            "ipu.merge_all_reduce=True: one replica has no gradients to sum with others; set "
            "ipu.replication_factor=2 or more, or leave it out"
        )
    schedule = ipu.popart.get("accumulateOuterFragmentSettings.schedule")
    if ipu.merge_all_reduce and schedule == 1:
        raise UserError(
            "ipu.popart.accumulateOuterFragmentSettings.schedule=1: ipu.merge_all_reduce needs "
            "another schedule than Serial; set it to 0, 2 or 3, or leave it out"
        )


def check_schedule(config: ScheduleConfig, epochs: int) -> None:
    """Refuse keys that the chosen schedule does not have, and ask for those that it needs."""
    try:
        (config.decay or 1.0) ** (epochs / (config.decay_epochs or 1.0))
    except OverflowError as error:
        raise UserError(
            f"schedule.decay={config.decay}: in {epochs} epochs the learning rate grows beyond all "
            f"numbers; expected a number below 1"
        ) from error
    needed = {"step": ("decay", "step_epochs"), "exponential": ("decay",)}.get(config.name, ())
    optional = ("decay_epochs",) if config.name == "exponential" else ()
    for name in ("decay", "decay_epochs", "step_epochs"):
        value = getattr(config, name)
        if value is None and name in needed:
            raise UserError(
                f"schedule.{name} is not set: schedule.name={config.name} needs it, e.g. "
                f"schedule.{name}={'[30,60,80]' if name == 'step_epochs' else 0.97}"
            )
        if value is not None and name not in (*needed, *optional):
            raise UserError(
                f"schedule.{name}={value}: schedule.name={config.name} does not have it; "
                f"leave it out"
            )
    steps = config.step_epochs or []
    if steps != sorted(set(steps)) or any(not 0 < step < math.inf for step in steps):
        raise UserError(f"schedule.step_epochs={steps}: expected rising numbers above 0")


def check_precision(config: RunConfig) -> None:
    """Refuse what only float16 has where there is none."""
    single = PRECISIONS[config.ipu.precision].activations == torch.float32
    if config.ipu.half_partials and single:
        raise UserError(
            "ipu.half_partials=True: float16 sums need float16 activations; set "
            "ipu.precision=16.32 or 16.16"
        )
    if config.optimizer.auto_loss_scaling and single:
        raise UserError(
            "optimizer.auto_loss_scaling=True: it looks at float16 gradients, which "
            "ipu.precision=32.32 does not have; set ipu.precision=16.32 or 16.16"
        )
    if config.optimizer.auto_loss_scaling and config.optimizer.initial_loss_scaling is not None:
        raise UserError(
            f"optimizer.initial_loss_scaling={config.optimizer.initial_loss_scaling:g}: the loss "
            f"scaling follows a schedule or is automatic; leave one of it and auto_loss_scaling out"
        )


def check_mixing(config: RunConfig) -> None:
    """Refuse mix-up and cut-mix within micro-batches that hold no partner to mix with."""
    training, size = config.training, config.ipu.micro_batch_size
    low, high = training.cutmix_lambda_low, training.cutmix_lambda_high
    if low > high:
        raise UserError(
            f"training.cutmix_lambda_low={low}: expected at most cutmix_lambda_high ({high})"
        )
    mixup, cutmix = training.mixup_alpha > 0, low < 1
    what = (
        "mix-up and cut-mix mix"
        if mixup and cutmix
        else "mix-up mixes"
        if mixup
        else "cut-mix mixes"
    )
    if (mixup or cutmix) and size < 2:
        raise UnsuitableBatch(
            f"ipu.micro_batch_size={size}: {what} the images of a micro-batch, of which "
            f"there must be 2 or more; raise it, or set training.mixup_alpha=0 and "
            f"training.cutmix_lambda_low=1"
        )
