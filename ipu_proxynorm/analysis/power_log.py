"""The power decomposition over the epochs of a run: ``power.jsonl``, one line an epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

from ipu_proxynorm.analysis.power import POWERS, Power
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.json_lines import append_line, read_lines

FILE = "power.jsonl"


def append_power_log(folder: Path, epoch: int, powers: Mapping[str, Power]) -> None:
    """Append the power after each normalization, measured after ``epoch``.

    Raises:
        UserError: the file cannot be written.

    """
    layers = {name: dataclasses.asdict(power) for name, power in powers.items()}
    try:
        append_line(folder / FILE, {"epoch": epoch, "layers": layers})
    except OSError as error:
        raise UserError(
            f"{str(folder / FILE)!r} cannot be written ({error.strerror}); free the disk, or train "
            f"without training.analyse_every"
        ) from error


def read_power_log(folder: Path) -> List[Dict[str, Power]]:
    """Return the power after each normalization for each epoch, in order.

    Raises:
        UserError: the run recorded none, or a line is not a record.

    """
    path = folder / FILE
    epochs = dict(read_lines(path, _record, "the record of an epoch; remove the line"))
    if not epochs:
        raise UserError(
            f"RUN_DIR {str(folder)!r}: no epoch in its {FILE}; expected a run trained with "
            f"training.analyse_every=1 or more"
        )
    return [epochs[epoch] for epoch in sorted(epochs)]  # of a repeated one the last


def _record(line: Dict[str, Any]) -> Tuple[int, Dict[str, Power]]:
    return line["epoch"], {name: Power(**values) for name, values in line["layers"].items()}


def average(epochs: List[Dict[str, Power]]) -> Dict[str, Power]:
    """Return the mean over epochs of each power after each normalization."""
    return {
        layer: Power(
            **{
                name: sum(getattr(epoch[layer], name) for epoch in epochs) / len(epochs)
                for name in (*POWERS, "mean_power")
            },
            instances=epochs[-1][layer].instances,
        )
        for layer in epochs[-1]
    }
