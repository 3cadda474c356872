"""Random programs, simulated, equal a float64 loop: a few of those that the benchmark draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.simulator

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "random_programs.py"


def test_random_programs_equal_a_plain_loop():
    # In a process of its own: the script makes the simulator known as poptorch.
    command = [sys.executable, str(SCRIPT), "--count", "8"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "8 of 8 programs equal" in ended.stdout
