"""Faults over phases and processes, in small; benchmarks/faults/fault_table.py has all of them."""

import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "faults" / "fault_table.py"


def cells():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return importlib.import_module("fault_list").SMALL
    finally:
        sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Each cell's row, by fault, phase, and numbers of processes and workers."""
    kept = tmp_path_factory.mktemp("faults") / "rows.csv"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), "--small", "--csv", str(kept)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert kept.exists(), ran.stderr
    with kept.open(newline="") as stream:
        found = list(csv.DictReader(stream))
    return {(r["fault"], r["phase"], int(r["processes"]), int(r["workers"])): r for r in found}


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: " ".join(map(str, cell)))
def test_a_fault_ends_in_one_sentence_and_nothing_is_lost(rows, cell):
    assert rows[cell]["wrong"] == "", rows[cell]
