"""The page of evidence: its pictures exist and are small."""

import re
from pathlib import Path

PAGE = Path("docs/evidence.md").read_text(encoding="utf-8")


def test_pictures_exist_and_are_small():
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", PAGE)
    assert pictures
    for picture in pictures:
        path = Path("docs", picture)
        assert 0 < path.stat().st_size < 300_000, path
        assert "prefers-color-scheme:dark" in path.read_text(encoding="utf-8")
