"""Running other people's programs, child processes included."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.simulator
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import subprocess, sys
import popart, poptorch, poptorch.poptorch_core as core, popdist.poptorch
from poptorch.options import Options
assert core.Error is poptorch.Error and popart.VirtualGraphMode and Options is poptorch.Options
print(poptorch.__name__, __name__, sys.argv[1:])
if sys.argv[1] == "parent":
    child = "import popart, poptorch; print(poptorch.__name__)"
    subprocess.run([sys.executable, "-c", child], check=True)
"""


@pytest.mark.parametrize("as_module", [False, True])
def test_a_program_and_its_children_get_the_simulator(tmp_path, as_module):
    (tmp_path / "program.py").write_text(PROGRAM)
    what = ["-m", "program"] if as_module else [str(tmp_path / "program.py")]
    command = [sys.executable, "-m", "ipu_proxynorm.simulator", *what, "parent"]
    result = subprocess.run(
        command,
        cwd=str(tmp_path),
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "ipu_proxynorm.simulator",
        "ipu_proxynorm.simulator __main__ ['parent']",
    ] or result.stdout.splitlines() == [
        "ipu_proxynorm.simulator __main__ ['parent']",
        "ipu_proxynorm.simulator",
    ]


def test_a_missing_program_is_one_sentence():
    result = subprocess.run(
        [sys.executable, "-m", "ipu_proxynorm.simulator", "nowhere.py"],
        cwd=str(ROOT),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "There is no file 'nowhere.py'" in result.stderr
    assert "Traceback" not in result.stderr
