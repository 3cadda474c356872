"""Going on with a run: what must be the same, and what is put back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, List, Mapping, Optional, Tuple

from torch import Tensor

from ipu_proxynorm.config import RunConfig, documentation, loads
from ipu_proxynorm.config.check import get
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import Checkpoint, Progress, TrainingState, load_checkpoint
from ipu_proxynorm.run.agreement import agree
from ipu_proxynorm.run.arithmetic import BatchArithmetic
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.inputs import Inputs
from ipu_proxynorm.run.processes import Processes
from ipu_proxynorm.run.run import Run, build, load_weights
from ipu_proxynorm.run.schedule import step_schedule

#: Keys that may differ from the run's own: none changes what a weight update is.
FREE = (
    "name",
    "runs",
    "data.path",
    "data.workers",
    "data.max_corrupt",
    "data.max_left_out",
    "ipu.micro_batch_size",
    "ipu.replication_factor",
    "ipu.gradient_accumulation",
    "ipu.device_iterations",
    "ipu.inference_device_iterations",
    "ipu.splits",
    "ipu.execution",
    "ipu.available_memory_proportion",
    "ipu.recomputation",
    "ipu.recomputation_checkpoints",
    "ipu.merge_all_reduce",
    "ipu.io_tiles",
    "ipu.overlap_io",
    "ipu.auto_round_ipus",
    "ipu.executable_cache",
    "training.epochs",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.keep_checkpoints",
    "training.validate",
    "training.validate_every",
    "training.line_seconds",
    "training.patience",
    "training.wandb",
)


def differences(ours: RunConfig, theirs: RunConfig, free: bool = False) -> List[str]:
    """Return the keys, free ones or the others, in which two configurations differ, as sentences.

    Each has both values.
    """
    keys = [key.name for key in documentation() if (key.name in FREE) == free]
    return [
        f"{key} was {get(theirs, key)} and is {get(ours, key)}"
        for key in keys
        if get(ours, key) != get(theirs, key)
    ]


def changed(run: Run, checkpoint: Checkpoint) -> List[str]:
    """Return, with both values, what has changed since a run's checkpoint and may change."""
    found = differences(run.config, loads(checkpoint.config), free=True)
    before = checkpoint.state.images if checkpoint.state is not None else ""
    if before and before != run.images:
        found.append(f"the data set was {before} and is {run.images}")
    return found


def check_continues(run: Run, checkpoint: Checkpoint) -> TrainingState:
    """Return the state with which ``run`` can go on from ``checkpoint``.

    Raises:
        UserError: it could not be the same run, or there is nothing left to do.
    """
    config, theirs = run.config, loads(checkpoint.config)
    differing = differences(config, theirs)
    if differing:
        raise UserError(
            f"--resume: the run {theirs.name!r} is another than CONFIG asks for: "
            f"{', '.join(differing)}; set it back, or start a run of another name"
        )
    before = BatchArithmetic.of(theirs.ipu, run.arithmetic.images)
    if (before.global_batch, before.combined_batch) != (
        run.arithmetic.global_batch,
        run.arithmetic.combined_batch,
    ):
        raise UserError(
            f"--resume: the run has {before.global_batch} images behind a weight update and "
            f"{before.combined_batch} behind a host call, but CONFIG lays out "
            f"{run.arithmetic.global_batch} and {run.arithmetic.combined_batch}; change "
            f"ipu.micro_batch_size, replication_factor, gradient_accumulation and "
            f"device_iterations so that their products stay"
        )
    if checkpoint.state is None:
        raise UserError("--resume: this checkpoint holds weights only; start a new run from it")
    if checkpoint.epoch >= config.training.epochs:
        raise UserError(
            f"--resume: the run {theirs.name!r} has finished its {checkpoint.epoch} epochs; "
            f"nothing is left to do (training.epochs={config.training.epochs})"
        )
    return checkpoint.state


def restore(run: Run, checkpoint: Optional[Checkpoint]) -> Progress:
    """Give ``run`` weights, optimiser state and schedule of ``checkpoint``; return its progress.

    Raises:
        UserError: it is a checkpoint of another run.
    """
    if checkpoint is None:
        return Progress()
    state = check_continues(run, checkpoint)
    load_weights(run, checkpoint)
    run.optimizer.load_state_dict(dict(state.optimizer))
    run.schedule.last_epoch = state.progress.step - 1
    step_schedule(run.schedule)
    return dataclasses.replace(state.progress)


def capture(
    run: Run,
    streams: Optional[Tensor],
    progress: Progress,
    config: str,
    metrics_bytes: int,
    extra: Mapping[str, Any],
    ways: Mapping[str, Any],
) -> Checkpoint:
    """Return a checkpoint of a run under way; training goes on as if nothing had been read."""
    return Checkpoint(
        epoch=progress.epoch,
        validation_accuracy=progress.validation_accuracy,
        config=config,
        weights=run.model.state_dict(),
        state=TrainingState(
            progress=dataclasses.replace(progress),
            optimizer=run.optimizer.state_dict(),
            streams=streams,
            metrics_bytes=metrics_bytes,
            extra=extra,
            ways=ways,
            images=run.images,
        ),
        inputs=Inputs.of(run.data).values(),
    )


def find_start(folder: Path, name: str) -> Optional[Checkpoint]:
    """Return the checkpoint from which the run in ``folder`` goes on; None: it has none yet."""
    directory = RunDirectory(folder)
    if not directory.checkpoints():
        return None
    return load_checkpoint(directory.checkpoint(name))


def begin(
    config: RunConfig, resume: bool, name: str, processes: Processes
) -> Tuple[Run, Optional[Checkpoint]]:
    """Return the run, and the checkpoint that it goes on from, where it does.

    Args:
        config: the configuration of the run.
        resume: go on with the run of that name, if it has a checkpoint.
        name: the name of the checkpoint, such as ``last``.
        processes: that share the run; they need not see its folder, the first one aside.

    Raises:
        UserError: the run cannot be built, or the checkpoint is of another one.
    """
    start = None
    with processes.together():
        if resume and processes.first:
            start = find_start(Path(config.runs, config.name), name)
    start = processes.of_first(start)
    with processes.together():
        run = build(config, initialize=start is None, processes=processes)
        if start is not None:
            check_continues(run, start)
    agree(processes, lambda: {"the data set": run.images})
    return run, start
