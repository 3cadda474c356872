"""The runs of a comparison: the configuration of each, what it leaves, what memory it takes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch

from ipu_proxynorm.analysis.comparison import DIVERGED, DONE, UNDEFINED, Cell, Row, thin
from ipu_proxynorm.analysis.proxies import ASSUMED, replace_proxies
from ipu_proxynorm.config import RunConfig, documentation, load
from ipu_proxynorm.config.check import UnsuitableBatch
from ipu_proxynorm.data.digest import digest
from ipu_proxynorm.data.image_data import ImageData
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import training_options
from ipu_proxynorm.memory import predict
from ipu_proxynorm.prediction.planning import global_batch
from ipu_proxynorm.run.interruption import Interruption
from ipu_proxynorm.run.mixing import draw
from ipu_proxynorm.run.run import build, create_images
from ipu_proxynorm.training.trial import Show, figures_depend_on, train_trial, why_undefined

#: Predicted bytes on the fullest IPU, by norm, micro-batch and variant.
Sram = Dict[Tuple[str, int, str], int]

#: Keys that a cell sets by itself, and what to vary them with.
OWN = {
    "name": "runs are named after what they vary",
    "runs": "choose the folder with --out",
    "seed": "choose with --seeds",
    "model.norm": "choose with --norms",
    "ipu.micro_batch_size": "choose with --micro-batch",
    "ipu.gradient_accumulation": "it follows from --micro-batch and the images per weight update",
}


def cell_or_reason(
    source: str, overrides: Sequence[str], base: RunConfig, cell: Cell
) -> Union[RunConfig, str]:
    """Return the checked configuration of one cell, or why its batch is divided as none can be.

    Raises:
        UserError: as `cell_config` does, where it is not the cell's own micro-batch that is wrong.
    """
    try:
        return cell_config(source, overrides, base, cell)
    except UnsuitableBatch as error:
        return str(error)


def cell_config(source: str, overrides: Sequence[str], base: RunConfig, cell: Cell) -> RunConfig:
    """Return the checked configuration of one cell: the same images per weight update.

    Args:
        source: YAML file of the comparison.
        overrides: the overrides of all cells.
        base: what both describe.
        cell: the cell of the comparison.

    Raises:
        UserError: the micro-batch does not divide them, what is varied changes them, or the
            configuration is not allowed.
    """
    images = cell.micro_batch * base.ipu.replication_factor
    if global_batch(base) % images:
        raise UserError(
            f"--micro-batch {cell.micro_batch}: {cell.micro_batch} x {base.ipu.replication_factor} "
            f"(replicas) does not divide the {global_batch(base)} images per weight update that "
            f"CONFIG has; choose divisors, or another ipu.gradient_accumulation"
        )
    own = [
        f"model.norm={cell.norm}",
        f"ipu.micro_batch_size={cell.micro_batch}",
        f"ipu.gradient_accumulation={global_batch(base) // images}",
        f"seed={cell.seed}",
    ]
    config = load(source, [*overrides, *own, *cell.own, *cell.varied])
    if global_batch(config) != global_batch(base):
        options = [f"--for {cell.norm}:{text}" for text in cell.own]
        options += [f"--vary {text}" for text in cell.varied]
        raise UserError(
            f"{' '.join(options)}: that is {global_batch(config)} images per weight update instead "
            f"of CONFIG's {global_batch(base)}; set keys that leave them as they are, or compare "
            f"twice"
        )
    if config.training.validate == "never":
        raise UserError(
            "training.validate=never: a comparison needs the accuracy after the last epoch; set "
            "it to epoch or end"
        )
    return config


def fingerprints_of(base: RunConfig, configs: Sequence[Union[RunConfig, str]]) -> List[str]:
    """Return, for each cell, a digest of what its figures follow from beside the cell's own keys.

    A row of another one is run again. Keys at their defaults do not enter: rows stay valid when
    the program gains keys. Nor does where images and runs are kept: rows stay valid on another
    machine.

    Args:
        base: what all cells share.
        configs: of the cells, or why there is none.

    Raises:
        UserError: the images of a cell cannot be found.
    """
    found: Dict[Tuple[str, str], str] = {}

    def of(config: Union[RunConfig, str]) -> str:
        if isinstance(config, str):
            return _fingerprint(base, None)
        key = config.model.name, repr(config.data)
        if key not in found:
            found[key] = _fingerprint(base, create_images(config))
        return found[key]

    return [of(config) for config in configs]


def _fingerprint(base: RunConfig, images: Optional[ImageData]) -> str:
    defaults = {key.name: key.default for key in documentation()}
    shared = {
        name: value
        for name, value in figures_depend_on(base, images).items()
        if name not in OWN and value != defaults[name]
    }
    shared["images"] = "" if images is None else digest(images)
    text = json.dumps({**shared, "images per weight update": global_batch(base)}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_cell(
    cell: Cell,
    config: Union[RunConfig, str],
    fingerprint: str,
    folder: Path,
    interruption: Optional[Interruption] = None,
    show: Optional[Show] = None,
) -> Row:
    """Train one cell, or say why it, or its norm, is undefined.

    The last two arguments are those of `train_trial`.

    Raises:
        Interrupted: ``interruption`` asked for it; the same call goes on with the run.
    """
    common = {**vars(cell), "fingerprint": fingerprint}
    if isinstance(config, str):
        return Row(**common, status=UNDEFINED, reason=config)
    config = dataclasses.replace(config, name=cell.name, runs=str(folder / "runs"))
    reason = why_undefined(config)
    if reason:
        return Row(**common, status=UNDEFINED, reason=reason)
    change = functools.partial(replace_proxies, kind=cell.proxy) if cell.proxy else None
    trial = train_trial(config, change, interruption, show)
    values = {**vars(trial), "curve": tuple(trial.curve)}
    values["losses"] = thin(trial.losses, values.pop("epochs"))
    reason = values.pop("diverged")
    return Row(**common, status=DIVERGED if reason else DONE, reason=reason, **values)


def predicted_sram(
    configs: Mapping[Cell, Union[RunConfig, str]], rows: Sequence[Row]
) -> Tuple[Sram, List[str]]:
    """Return the memory of every norm, micro-batch and variant; and why of some it is not known.

    What replaces the proxy's moments for a diagnosis has none.
    """
    found: Sram = {}
    unknown: List[str] = []
    for row in rows:
        key = (row.norm, row.micro_batch, row.cell.variant)
        if row.proxy not in ("", ASSUMED):
            continue
        config = configs[row.cell]
        if isinstance(config, str) or row.status == UNDEFINED or key in found:
            continue
        run = build(config)
        images = torch.zeros(
            row.micro_batch, run.data.channels, *run.data.image_size, dtype=torch.uint8
        )
        labels = torch.zeros(row.micro_batch, dtype=torch.int64)
        mixing = draw(config.training, images.shape, config.seed, 1, 0)
        try:
            prediction = predict(
                run.program,
                training_options(config),
                (images, labels, *mixing),
                optimizer=run.optimizer,
                training=True,
                advise=False,
            )
        except UserError as error:
            unknown.append(f"{row.cell.name}: memory is not predicted ({error})")
            continue
        found[key] = max(ipu.used for ipu in prediction.ipus)
    return found, unknown
