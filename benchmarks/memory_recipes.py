"""Predicts the memory of every recipe of ``configs/imagenet`` and prints the verdicts.

    python benchmarks/memory_recipes.py [--only b0]

One row for each recipe, as Markdown: its layout, the fullest IPU of a replica with the interval of
the calibrations, and the verdict; then how many have each verdict.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import List

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ipu_proxynorm.config import RunConfig, load
from ipu_proxynorm.memory import MIB, Verdict, predict_capture
from ipu_proxynorm.prediction.footprint import footprint

HEAD = ["recipe", "IPUs", "micro-batch", "fullest IPU", "MiB", "utilisation", "interval", "verdict"]


def row(config: RunConfig, verdict: Verdict, used: int) -> List[str]:
    """Return one recipe's cells."""
    ipu = config.ipu
    return [
        config.name,
        f"{len(ipu.splits) + 1} x {ipu.replication_factor}",
        str(ipu.micro_batch_size),
        str(verdict.ipu),
        f"{used / MIB:,.0f}",
        f"{verdict.utilisation:.0%}",
        f"{verdict.low:.0%} to {verdict.high:.0%}",
        verdict.name,
    ]


def main() -> None:
    """Print the table, and how many recipes have each verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="recipes whose name holds this")
    arguments = parser.parse_args()
    found: Counter[str] = Counter()
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    for path in sorted(Path("configs/imagenet").glob("*.yaml")):
        if arguments.only not in path.stem:
            continue
        config = load(path)
        one = footprint(config)
        prediction = predict_capture(one.capture, one.layout)
        verdict = prediction.verdict
        print(
            f"| {' | '.join(row(config, verdict, prediction.ipus[verdict.ipu].used))} |", flush=True
        )
        found[verdict.name] += 1
    print(
        f"\n{sum(found.values())} recipes: {', '.join(f'{n} {name}' for name, n in found.items())}"
    )


if __name__ == "__main__":
    main()
