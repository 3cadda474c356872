"""Plans the 30 published EfficientNet layouts anew, and compares what is predicted.

    python benchmarks/plan_published.py [--only b0]

Prints for each recipe of ``configs/imagenet/efficientnet_*`` (D. Masters et al.,
*Making EfficientNet More Efficient*, arXiv 2106.03640) its own stages x replicas, micro-batch and
splits beside the plan's for the same 16 IPUs and the same global batch, both predicted.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import List

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ipu_proxynorm.config import load
from ipu_proxynorm.memory.planner import Plan
from ipu_proxynorm.placement import ON_CHIP
from ipu_proxynorm.prediction.planning import (
    global_batch,
    layer_names,
    plan_run,
    recomputation,
)

IPUS = 16
HEAD = ["recipe", "published", "images/s", "fullest IPU", "planned", "images/s", "fullest IPU",
        "planned / published", "seconds"]  # fmt: skip


def layout(plan: Plan) -> str:
    """Return a plan in short: stages x replicas, micro-batch, splits, and what else it asks for."""
    batch = plan.batch
    splits = " ".join(layer_names(plan.splits))
    text = f"{batch.stages}x{batch.replicas}, {batch.micro_batch}: {splits}"
    asked = []
    if plan.checkpoints:
        asked.append(f"keeps {' '.join(layer_names(plan.checkpoints))}")
    if batch.stages == 1 and plan.recomputation != "none":
        asked.append(f"recomputation {recomputation(plan)}")
    if plan.optimizer_location != ON_CHIP:
        asked.append(f"state {plan.optimizer_location}")
    if plan.proportion is not None:
        asked.append(f"proportion {plan.proportion:g}")
    return f"{text} ({', '.join(asked)})" if asked else text


def row(path: Path) -> List[str]:
    """Return one recipe's row."""
    start = time.perf_counter()
    config = load(path)
    found = plan_run(config, IPUS, global_batch(config))
    given, best = found.given, found.best
    return [
        path.stem.replace("efficientnet_", ""),
        layout(given),
        f"{given.images_per_second:,.0f}",
        f"{given.prediction.verdict.utilisation:.0%}",
        layout(best),
        f"{best.images_per_second:,.0f}",
        f"{best.prediction.verdict.utilisation:.0%}",
        f"{best.images_per_second / given.images_per_second:.2f}",
        f"{time.perf_counter() - start:.0f}",
    ]


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="recipes whose name holds this")
    arguments = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "---|" * len(HEAD))
    for path in sorted(Path("configs/imagenet").glob("efficientnet_*.yaml")):
        if arguments.only in path.stem:
            print("| " + " | ".join(row(path)) + " |", flush=True)


if __name__ == "__main__":
    main()
