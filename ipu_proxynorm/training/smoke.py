"""One small weight update of a run, on any machine: does the recipe work at all?"""

from __future__ import annotations

import dataclasses
import re
import tempfile
from typing import Any, Dict, List, Sequence

import torch

from ipu_proxynorm.config import ModelConfig, RunConfig
from ipu_proxynorm.config.check import check, get
from ipu_proxynorm.data import dataset
from ipu_proxynorm.errors import UserError, blame
from ipu_proxynorm.ipu import create_network
from ipu_proxynorm.ipu.pipeline import resolve_splits, split_points
from ipu_proxynorm.models.factory import architecture, check_resolution
from ipu_proxynorm.norm import parse_norm_spec
from ipu_proxynorm.placement import SHARDED
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.run import Run, build
from ipu_proxynorm.stages import micro_batches_needed
from ipu_proxynorm.training.loop import fit
from ipu_proxynorm.training.results import StepResult

#: Images of noise stand in for these; the others come with a package.


@dataclasses.dataclass(frozen=True)
class Smoke:
    """What one small weight update showed.

    Attributes:
        changes: what was made smaller than the recipe has it, a line each.
        run: what ran.
        step: its loss and learning rate.
        updated: parameter tensors that the update changed.

    """

    changes: List[str]
    run: Run
    step: StepResult
    updated: int


def smaller(config: RunConfig) -> RunConfig:
    """Return the run with less of everything that does not change what it is.

    The network but for its depth, its norm, its pipeline stages, precision, optimiser, schedule
    (after its warm-up, in which the first update is of length zero) and ways of mixing images stay;
    images are noise of few pixels, and as few as fill the pipeline.

    Raises:
        UserError: the network is unknown, a split no layer of it, or images are too small for it.
    """
    with blame("model.name", config.model.name):
        known = architecture(config.model.name)
    for key in ("image_size", "eval_image_size"):
        size = getattr(config.data, key)
        if size is not None:
            with blame(f"data.{key}", size):
                check_resolution(config.model.name, size)
    splits = shallow_splits(config.model, config.ipu.splits)
    stages = len(splits) + 1
    pipelined = stages > 1 and config.ipu.execution == "pipelined"
    proportions = config.ipu.available_memory_proportion
    changes: Dict[str, Dict[str, Any]] = {
        "data": {"workers": 0, "train_images": None, "held_out": None},
        "ipu": {
            "micro_batch_size": min(config.ipu.micro_batch_size, 2),
            # What replicas have between them needs two: a sharded state, sums of gradients.
            "replication_factor": 2
            if config.ipu.optimizer_state == SHARDED or config.ipu.merge_all_reduce
            else 1,
            "gradient_accumulation": micro_batches_needed(stages, training=True)
            if pipelined
            else 1,
            "device_iterations": 1,
            "inference_device_iterations": 1,
            "splits": splits,
            "recomputation_checkpoints": [],
            "check_memory": False,
            "available_memory_proportion": None if proportions is None else proportions[:stages],
        },
        "schedule": {"warmup_epochs": 0.0},
        "training": {"init_from": None, "wandb": None},
    }
    if dataset(config.data.name).on_disk:
        # At a resolution of 1x1 the statistics of a channel of two images say nothing.
        channelwise = parse_norm_spec(config.model.norm).kind in ("bn", "in")
        size = max(known.reduction * (2 if channelwise else 1), 8)
        changes["data"].update(name="synthetic", path=None, image_size=size, eval_image_size=None)
    sections = {
        name: dataclasses.replace(getattr(config, name), **values)
        for name, values in changes.items()
    }
    config = dataclasses.replace(config, **sections)
    check(config)
    return config


def shallow_splits(model: ModelConfig, splits: Sequence[str]) -> List[str]:
    """Return where the stages of the shallow network begin: in the same group of blocks.

    Raises:
        UserError: a split is no layer of the whole network, or out of order.
    """
    with torch.device("meta"):
        whole, shallow = (
            create_network(model, 10, 3, (2**10, 2**10), few) for few in (False, True)
        )
    points = split_points(shallow)
    found: List[str] = []
    wanted = resolve_splits(whole, splits)
    for split in wanted:
        *group, index = re.split(r"(?<=\.)(?=\d+(?:\.|$))", split)
        number, dot, rest = index.partition(".")
        choices = [
            f"{''.join(group)}{n}{dot}{rest}"
            for n in range(int(number) if number.isdigit() else 0, -1, -1)
        ]
        layer = next((name for name in [split, *choices] if name in points), None)
        if layer is not None and layer not in found:
            found.append(layer)
    if len(found) < len(wanted):
        # Stages that fell together leave a number of IPUs that PopTorch may not reserve.
        found = found[: (1 << (len(found) + 1).bit_length() - 1) - 1]
    return found


def differences(before: RunConfig, after: RunConfig) -> List[str]:
    """Return the keys that differ, with both values, a line each."""
    lines = ["the network: as few blocks as leave some of each kind"]
    for part in ("data", "ipu", "schedule", "training"):
        for field in dataclasses.fields(getattr(before, part)):
            name = f"{part}.{field.name}"
            if get(before, name) != get(after, name):
                lines.append(f"{name}: {get(before, name)} -> {get(after, name)}")
    return lines


def smoke(config: RunConfig) -> Smoke:
    """Take one small weight update as ``config`` says, and leave nothing on disk.

    Raises:
        UserError: the run cannot be built, its loss is not finite, or nothing was updated.
    """
    small = smaller(config)
    with tempfile.TemporaryDirectory() as folder:
        small = dataclasses.replace(small, runs=folder)
        run = build(small, shallow=True)
        before = {name: p.detach().clone() for name, p in run.model.named_parameters()}
        directory = RunDirectory.create(small)
        try:
            step = next(iter(fit(run, directory)))
        finally:
            directory.close()
    assert isinstance(step, StepResult)
    after = dict(run.model.named_parameters())
    wrong = [name for name, p in after.items() if not torch.isfinite(p).all()]
    if wrong:
        raise UserError(f"--smoke: not finite after one update: {', '.join(wrong[:3])}")
    updated = sum(not torch.equal(before[name], p) for name, p in after.items())
    if not updated:
        raise UserError("--smoke: one update changed no parameter; is optimizer.lr 0?")
    return Smoke(differences(config, small), run, step, updated)
