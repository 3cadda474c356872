"""The README's claims: its library example runs, its files exist, its numbers are the code's."""

import re
from pathlib import Path

import pytest

README = Path("README.md").read_text(encoding="utf-8")


def test_the_library_example_runs():
    (code,) = re.findall(r"## As a library\n+```python\n(.*?)```", README, re.DOTALL)
    assert len(code.strip().splitlines()) <= 14
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["loss"].shape == (2,)
    assert names["loss"].isfinite().all()


def test_every_path_it_names_exists():
    for path in set(re.findall(r"`((?:[a-z_]+/)+[a-z_.]*|[a-z_]+\.py)`", README)):
        if not path.startswith("runs/"):
            assert Path(path).exists(), path


def test_its_versions_are_those_that_ci_runs():
    noxfile = Path("noxfile.py").read_text(encoding="utf-8")
    for part in ("2.0.1", "0.15.2", "2.14.1", "0.29.1"):
        assert part in noxfile
        assert part in README


def test_its_quickstart_output_is_of_the_shipped_configuration():
    config = Path("configs/quickstart.yaml").read_text(encoding="utf-8")
    epochs = re.search(r"^  epochs: (\d+)", config, re.MULTILINE).group(1)
    assert f"epoch {epochs}/{epochs}" in README
    accuracies = re.findall(r"last epoch: validation accuracy (\d+\.\d+)%", README)
    assert float(accuracies[0]) == pytest.approx(98.5, abs=1.5)
