"""The page of evidence: its pictures exist and are small, its full training is as recorded."""

import re
import statistics
from collections import defaultdict
from pathlib import Path

from ipu_proxynorm.analysis.row_store import RowStore

#: Whose accuracy the page tells.
EPOCHS = (1, 5, 10, 15, 20, 25, 30)
PAGE = Path("docs/evidence.md").read_text(encoding="utf-8")


def test_pictures_exist_and_are_small():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert pictures
    for picture in pictures:
        path = Path("docs", picture)
        assert 0 < path.stat().st_size < 300_000, path
        assert "prefers-color-scheme:dark" in path.read_text(encoding="utf-8")


def test_the_full_training_is_told_as_its_rows_say():
    table = PAGE.partition("### A full training")[2]
    names = {"bn": "Batch Norm", "gn4": "Group Norm", "gn4+pn": "Group Norm + Proxy Norm"}
    accuracies = defaultdict(list)
    for row in RowStore(Path("docs/full_training.jsonl")).read():
        told = [100 * row.curve[epoch - 1]["validation_accuracy"] for epoch in EPOCHS]
        shown = [names[row.norm], str(row.micro_batch), str(row.seed)]
        cells = [*shown, *(f"{value:.1f}" for value in told), f"{row.loss:.2f}"]
        assert f"| {' | '.join(cells)} |" in table
        assert f"{100 * row.accuracy:.2f}" in table
        accuracies[row.norm, row.micro_batch].append(100 * row.accuracy)
    assert set(accuracies) == {("bn", 2), ("bn", 32), ("gn4", 32), ("gn4+pn", 2), ("gn4+pn", 32)}
    for of_seeds in accuracies.values():
        mean = f"{statistics.mean(of_seeds):.2f}"
        assert mean in table
        assert mean in Path("README.md").read_text(encoding="utf-8")
