"""The entrance: docs/example.py runs from top to bottom and shows what it says."""

import re
from pathlib import Path

EXAMPLE = Path("docs/example.py")


def test_it_runs_and_learns(capsys):
    code = EXAMPLE.read_text(encoding="utf-8")
    assert len(code.splitlines()) <= 100
    exec(compile(code, str(EXAMPLE), "exec"), {"__name__": "__main__"})
    shown = capsys.readouterr().out
    assert float(re.search(r"differs by at most (\S+)", shown).group(1)) < 1e-3
    assert len(re.findall(r"IPU \d: \d+ MiB", shown)) == 2
    assert float(re.search(r"accuracy: ([\d.]+)%", shown).group(1)) > 93
