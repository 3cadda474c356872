"""The power decomposition over the epochs of a run: ``power.jsonl``, one line an epoch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Mapping, Set, Tuple

from ipu_proxynorm.analysis.power import POWERS, Power
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.json_lines import Unexpected, append_line, read_lines
from ipu_proxynorm.files.whole import replacing

FILE = "power.jsonl"
EXPECTED = "the record of an epoch; remove the line"


def append_power_log(folder: Path, epoch: int, powers: Mapping[str, Power]) -> None:
    """Append the power after each normalization, measured after ``epoch``.

    Raises:
        UserError: the file cannot be written.

    """
    layers = {name: dataclasses.asdict(power) for name, power in powers.items()}
    try:
        append_line(folder / FILE, {"epoch": epoch, "layers": layers})
    except OSError as error:
        raise _unwritten(folder, error) from error


def rewind_power_log(folder: Path, epoch: int) -> None:
    """Forget what was measured after ``epoch``, where a run goes on.

    Raises:
        UserError: the file cannot be written, or a line is not a record.
    """
    path = folder / FILE
    kept = [line for line in read_lines(path, _record, EXPECTED) if line[0] <= epoch]
    if not path.is_file():
        return
    try:
        with replacing(path) as stream:
            for number, powers in kept:
                layers = {name: dataclasses.asdict(power) for name, power in powers.items()}
                stream.write((json.dumps({"epoch": number, "layers": layers}) + "\n").encode())
    except OSError as error:
        raise _unwritten(folder, error) from error


def _unwritten(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"{str(folder / FILE)!r} cannot be written ({error.strerror}); free the disk, or train "
        f"without training.analyse_every"
    )


def epochs(folder: Path) -> Set[int]:
    """Return the epochs after which the power was measured.

    Raises:
        UserError: a line is not a record.
    """
    return {epoch for epoch, _ in read_lines(folder / FILE, _record, EXPECTED)}


def read_power_log(folder: Path) -> List[Dict[str, Power]]:
    """Return the power after each normalization for each epoch, in order.

    Raises:
        UserError: the run recorded none, or a line is not a record.

    """
    path = folder / FILE
    found = dict(read_lines(path, _record, EXPECTED))
    if not found:
        raise UserError(
            f"RUN_DIR {str(folder)!r}: no epoch in its {FILE}; expected a run trained with "
            f"training.analyse_every=1 or more"
        )
    return [found[epoch] for epoch in sorted(found)]  # of a repeated one the last


def _record(line: Mapping[str, Any]) -> Tuple[int, Dict[str, Power]]:
    epoch, layers = line["epoch"], line["layers"]
    if not isinstance(epoch, int):
        raise Unexpected("epoch is not a number")
    for name, values in layers.items():
        for figure, value in values.items():
            # Of a network that diverges a power may be infinite or no number.
            if not isinstance(value, (int, float)):
                raise Unexpected(f"{figure} of {name} is not a number")
    return epoch, {name: Power(**values) for name, values in layers.items()}


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
