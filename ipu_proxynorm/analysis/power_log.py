"""The power decomposition over the epochs of a run: ``power.jsonl``, one line an epoch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Dict, List, Mapping

from ipu_proxynorm.analysis.power import POWERS, Power
from ipu_proxynorm.errors import UserError

FILE = "power.jsonl"


def append_power_log(folder: Path, epoch: int, powers: Mapping[str, Power]) -> None:
    """Append the power after each normalization, measured after ``epoch``."""
    layers = {name: dataclasses.asdict(power) for name, power in powers.items()}
    with (folder / FILE).open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"epoch": epoch, "layers": layers}) + "\n")


def read_power_log(folder: Path) -> List[Dict[str, Power]]:
    """Return the power after each normalization for each epoch, in order.

    Raises:
        UserError: the run recorded none.

    """
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"RUN_DIR {str(folder)!r}: no {FILE} in it; expected a run trained with "
            f"training.analyse_every=1 or more"
        )
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    epochs = {line["epoch"]: line["layers"] for line in lines}  # of a repeated one the last
    return [
        {name: Power(**values) for name, values in epochs[epoch].items()}
        for epoch in sorted(epochs)
    ]


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
