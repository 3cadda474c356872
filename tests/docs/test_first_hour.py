"""The notebook runs from top to bottom, in the environment of the tests, and shows what it says."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path("docs/first_hour.ipynb")


@pytest.fixture(scope="module")
def outputs():
    """What the executed cells printed, as one text."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=None, resources={"metadata": {"path": "docs"}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in shown if output.output_type == "error"]
    return "\n".join(output.get("text", "") + str(output.get("data", "")) for output in shown)


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells)


def test_it_shows_what_the_text_says(outputs):
    p1 = {spec: float(value) for spec, value in re.findall(r"(\S+) +P1 .*: ([\d.]+)", outputs)}
    assert p1["ln"] > 0.8
    assert p1["bn"] == p1["in"] == 0
    assert p1["ln+pn"] < 0.1
    found = re.findall(r"(\S+) +largest difference of a weight: (\S+)", outputs)
    differences = {spec: float(value) for spec, value in found}
    assert differences["ln+pn"] < 1e-5
    assert differences["gn4+pn"] < 1e-5
    assert differences["bn"] > 1e-3
    assert "epoch 1: loss" in outputs
    assert "micro-batch 16: " in outputs
    assert "<svg" in outputs
    assert "gn4+pn: 7 normalizations" in outputs
