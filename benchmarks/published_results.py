"""The expected results of the published recipes: the table of docs/published_results.md.

    python benchmarks/published_results.py            # print the table
    python benchmarks/published_results.py --write    # and put it into docs/published_results.md

What was published stands in docs/published_results.csv; stages, batch and image size in the table
are those of the recipes in configs/imagenet.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Dict, List

from ipu_proxynorm.config import load

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "published_results.md"
FIGURES = ROOT / "docs" / "published_results.csv"
RECIPES = ROOT / "configs" / "imagenet"
HEADER = (
    "| recipe | pixels | micro-batch × replicas × accumulation | stages | top-1, % | images/s |\n"
    "|---|---|---|---|---|---|"
)


def published() -> List[Dict[str, str]]:
    """Return the published figures, a dictionary a recipe."""
    with open(FIGURES, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def recipe(row: Dict[str, str]) -> Path:
    """Return the recipe of a row of figures."""
    norm = {"gn4": "gn", "ln+pn": "ln_pn"}[row["norm"]]
    parts = (row["model"].lower(), row["variant"].lower(), norm, row["resolution"])
    return RECIPES / f"efficientnet_{'_'.join(parts)}.yaml"


def table() -> str:
    """Return the table, a line a recipe."""
    lines = [HEADER]
    for row in published():
        path = recipe(row)
        config = load(path)
        ipu = config.ipu
        batch = f"{ipu.micro_batch_size} × {ipu.replication_factor} × {ipu.gradient_accumulation}"
        lines.append(
            f"| [{path.stem}](../configs/imagenet/{path.name}) | {config.data.image_size} "
            f"| {batch} | {len(ipu.splits) + 1} | {row['top1_percent']} "
            f"| {int(row['images_per_second']):,} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put it into the docs' page")
    arguments = parser.parse_args()
    print(table())
    if arguments.write:
        before, _, after = PAGE.read_text(encoding="utf-8").partition(HEADER)
        _, _, rest = after.partition("\n\n")  # a blank line ends the table
        PAGE.write_text(f"{before}{table()}\n\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
