"""The page of evidence: its pictures exist and are small, its full training is as recorded."""

import re
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
    rows = RowStore(Path("docs/full_training.jsonl")).read()
    table = PAGE.partition("### A full training")[2]
    names = {"bn": "Batch Norm", "gn4+pn": "Group Norm + Proxy Norm"}
    assert {row.norm for row in rows} == set(names)
    for row in rows:
        told = [100 * row.curve[epoch - 1]["validation_accuracy"] for epoch in EPOCHS]
        shown = [names[row.norm], str(row.micro_batch), *(f"{value:.1f}" for value in told)]
        cells = [*shown, f"{row.loss:.2f}"]
        assert f"| {' | '.join(cells)} |" in table
        assert f"{100 * row.accuracy:.2f}" in table
        assert f"{100 * row.accuracy:.2f}" in Path("README.md").read_text(encoding="utf-8")
