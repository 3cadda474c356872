"""``run_ipu.py memory``: tables, sweeps, files, and one sentence for what is wrong."""

import csv
import json

import pytest

from ipu_proxynorm.backend import SIMULATED
from ipu_proxynorm.cli import main
from ipu_proxynorm.models.resnetv2 import ResNetV2

QUICKSTART = "configs/quickstart.yaml"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What a prediction of two norms with a sweep prints and writes."""
    folder = tmp_path_factory.mktemp("memory")
    asked = ["--norms", "gn4+pn,bn", "--micro-batch", "1..3", "--output", str(folder)]
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["memory", QUICKSTART, *asked]) == 0
    return folder, printed.getvalue()


def test_terms_verdict_and_what_is_largest_are_printed(written):
    _, printed = written
    for words in (
        "quickstart: resnetv2_8 (gn4+pn), micro-batch 4, mk2",
        "2 IPUs a replica x 2 replicas",
        "fits: IPU 1 is the fullest", "MiB less, then",
        "code", "tile imbalance", "in use", "capacity", "897",
        "fullest IPU, MiB", "largest tensors", "model.stem: convolution", "largest layers (kept)",
        "gn4+pn: the largest micro-batch that fits is 3 (the last one tried)",
    ):  # fmt: skip
        assert words in printed, words


def test_files_hold_what_is_printed(written):
    folder, _ = written
    names = {f"{name}.{kind}" for name in ("ipus", "time", "norms", "micro_batch")
             for kind in ("png", "svg")}  # fmt: skip
    assert {path.name for path in folder.iterdir()} == names | {
        "table.csv", "results.json", "report.html"
    }  # fmt: skip
    page = (folder / "report.html").read_text()
    assert page.index("<svg role=") < page.index("<table>")
    for words in (
        "gn4+pn: fits",
        "Norms side by side",
        "Largest tensors",
        "<svg",
        "MiB less, then",
    ):
        assert words in page, words
    results = json.loads((folder / "results.json").read_text())
    assert set(results["predictions"]) == {"gn4+pn", "bn"}
    first = results["predictions"]["gn4+pn"]
    assert first["verdict"]["name"] == "fits"
    assert results["sweeps"]["bn"]["largest_that_fits"] == 3
    with (folder / "table.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 + 2 * 3  # IPUs of each norm, and each norm's sweep
    assert int(rows[0]["code"]) == first["ipus"][0]["terms"]["code"]
    assert int(rows[0]["used"]) == sum(first["ipus"][0]["terms"].values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--micro-batch", "0..4"], "--micro-batch 0..4: expected two numbers A..B from 1 up"),
        (["--micro-batch", "8..4"], "--micro-batch 8..4: expected"),
        (["--micro-batch", "many"], "--micro-batch many: expected"),
        (["--norms", "gn4,nn"], "--norms=gn4,nn: unknown norm spec 'nn'"),
        (["--format", "pdf"], "--format 'pdf' is unknown"),
        (["ipu.chip=mk9"], "ipu.chip: 'mk9' is unknown"),
        (["ipu.splits=[layer9]", "ipu.gradient_accumulation=3"], "'layer9' is no layer"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, words, capsys):
    assert main(["memory", QUICKSTART, *arguments]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


def test_a_network_that_looks_at_values_is_one_sentence(capsys, monkeypatch):
    def forward(self, images):
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)

    monkeypatch.setattr(ResNetV2, "forward", forward)
    assert main(["memory", QUICKSTART]) == 2
    printed = capsys.readouterr()
    assert "cannot be traced without its values" in printed.err
    assert "must not depend on values" in printed.err
    assert len(printed.err.splitlines()) == 1
    assert "MiB" not in printed.out


@pytest.mark.skipif(not SIMULATED, reason="needs the simulator, which has no compiler")
def test_measuring_needs_the_sdk(capsys):
    assert main(["memory", QUICKSTART, "--measured"]) == 2
    assert "which the simulator does not have" in capsys.readouterr().err
