"""Parameters and multiply-adds of every network: the table of docs/models.md.

    python benchmarks/model_costs.py            # print the table
    python benchmarks/model_costs.py --write    # and put it into docs/models.md

What was published stands in docs/published_costs.csv.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

from ipu_proxynorm.models import MODELS, EfficientNet, cost

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "models.md"
FIGURES = ROOT / "docs" / "published_costs.csv"
HEADER = (
    "| network | pixels | parameters | multiply-adds, 10⁹ | published, 10⁶, 10⁹ (pixels, by) |\n"
    "|---|---|---|---|---|"
)
G16 = {"group_dim": 16, "expansion": 4}


def published() -> List[Dict[str, str]]:
    """Return the published figures, a dictionary a figure."""
    with open(FIGURES, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def networks() -> Iterator[Tuple[str, Dict[str, Any]]]:
    """Yield every network's name with options: the EfficientNets also as G16."""
    for name, known in MODELS.items():
        yield name, {}
        if known.network is EfficientNet:
            yield name, G16


def line(name: str, options: Dict[str, Any]) -> str:
    """Return a network's line of the table."""
    found = cost(name, **options)
    figures = [
        f"{row['parameters_millions']}, {row['multiply_adds_billions'] or '-'} "
        f"({row['resolution']}, {row['source']})"
        for row in published()
        if row["network"] == name and not options
    ]
    label = f"{name}, G16" if options else name
    return (
        f"| {label} | {MODELS[name].resolution} | {found.parameters:,} "
        f"| {found.multiply_adds / 1e9:.3f} | {'; '.join(figures)} |"
    )


def table() -> str:
    """Return the table, a line a network."""
    return "\n".join([HEADER, *(line(name, options) for name, options in networks())])


def main() -> None:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put it into the docs' page")
    arguments = parser.parse_args()
    text = table()
    print(text)
    if arguments.write:
        before, _, after = PAGE.read_text(encoding="utf-8").partition(HEADER)
        _, _, rest = after.partition("\n\n")  # a blank line ends the table
        PAGE.write_text(f"{before}{text}\n\n{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
