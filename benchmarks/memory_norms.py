"""Memory against the micro-batch for Batch Norm, Group Norm and Group Norm with Proxy Norm.

    python benchmarks/memory_norms.py > docs/memory_norms.md

By prediction, of ResNet-50 v2 (configs/imagenet/resnetv2_50_gn4.yaml): the fullest IPU of the
recipe's pipeline of four stages, and the whole network on one IPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import List, Sequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ipu_proxynorm.config import load
from ipu_proxynorm.memory import MIB
from ipu_proxynorm.prediction.footprint import footprint
from ipu_proxynorm.prediction.sweep import Sweep, largest, sweep, with_norm

CONFIG = "configs/imagenet/resnetv2_50_gn4.yaml"
NORMS = ("bn", "gn4", "gn4+pn")
LAYOUTS = {
    "Four IPUs a replica": ([], (1, 2, 4, 8, 12, 16, 20, 24, 32)),
    "One IPU a replica": (["ipu.splits=[]"], (1, 2, 4, 8, 12, 16)),
}


def table(overrides: Sequence[str], steps: Sequence[int]) -> List[str]:
    """Return the table of one layout as Markdown."""
    config = load(CONFIG, overrides)
    found = [footprint(with_norm(config, norm)) for norm in NORMS]
    columns: List[Sweep] = [sweep(one, steps) for one in found]
    lines = [f"| micro-batch | {' | '.join(NORMS)} |", "|---:|" + "---:|" * len(NORMS)]
    for cells in zip(*columns):
        shown = [f"{b.used / MIB:,.0f} MiB ({b.utilisation:.0%})" for _, b in cells]
        lines.append(f"| {cells[0][0]} | {' | '.join(shown)} |")
    most = [largest(sweep(one, range(1, 65))) for one in found]
    lines.append(f"| largest that fits | {' | '.join(str(m or 'none') for m in most)} |")
    return lines


def main() -> None:
    """Print the page."""
    print(
        "# Memory of ResNet-50 by norm and micro-batch\n\n"
        "The fullest Mk2 IPU of a replica in training, by prediction, in MiB and as share of its\n"
        f"897 MiB; `{CONFIG}` (224x224, precision 16.32, SGD with\n"
        "momentum). *Fits*: at most 85 %. Made by `python benchmarks/memory_norms.py`; no IPU has\n"
        "measured it. How good such predictions are: `docs/memory.md`.\n\n"
        "![memory of the fullest of four IPUs by micro-batch](figures/memory_norms.svg)\n\n"
        "The picture (`bn` lies under `gn4`, `gn4+pn` under `ln+pn`: equal to 1 MiB) and every\n"
        "micro-batch from 1 to 32:\n\n"
        "```console\n"
        f"$ ipu-proxynorm memory {CONFIG} \\\n"
        "    --norms bn,gn4,gn4+pn,ln+pn --micro-batch 1..32 --output out\n"
        "```"
    )
    for title, (overrides, steps) in LAYOUTS.items():
        print(f"\n## {title}\n")
        print("\n".join(table(overrides, steps)))


if __name__ == "__main__":
    main()
