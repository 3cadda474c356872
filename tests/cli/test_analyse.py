"""``run_ipu.py analyse``: networks before and after training, files, and what is refused."""

import csv
import json
import shutil

import pytest

from ipu_proxynorm.cli import main

RANDOM = ["configs/analyse/random_net.yaml", "model.name=random_50", "model.width=8"]
QUICK = "configs/quickstart.yaml"


def run(capsys, *arguments):
    """Exit status and what was printed."""
    status = main([str(a) for a in arguments])
    return status, capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch that recorded its power."""
    runs = tmp_path_factory.mktemp("runs")
    small = ["training.epochs=1", "ipu.micro_batch_size=16", "training.analyse_every=1"]
    assert main(["train", QUICK, f"runs={runs}", "model.norm=bn", *small]) == 0
    return runs / "quickstart"


def test_norms_at_initialisation(capsys, tmp_path):
    arguments = ["--norms", "ln,ln+pn", "--images", "12", "--out", tmp_path]
    formats = ["--format", "html,png,svg,csv,json"]
    status, output = run(capsys, "analyse", *RANDOM, *arguments, *formats)
    assert status == 0
    assert "ln+pn: 50 normalizations" in output.out
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"report.html", "power.png", "power.svg", "table.csv", "results.json"}
    with (tmp_path / "table.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 100
    for row in rows:
        assert float(row["sum"]) == pytest.approx(float(row["mean power"]), rel=1e-5)
        assert row["instances"] == "12"
    values = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert (
        values["power"]["ln"]["layers.49.1"]["p1"] > values["power"]["ln+pn"]["layers.49.1"]["p1"]
    )
    assert list(values["proxies"]) == ["ln+pn"]
    assert len(values["proxies"]["ln+pn"]) == 50
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Distance from the proxy" in page
    assert "random_50 on digits" in page
    assert "width: 8" in page


@pytest.mark.parametrize("norm", ["bn", "ln+pn"])
@pytest.mark.parametrize("config", [[QUICK], RANDOM], ids=["quickstart", "random_50"])
def test_no_figure_depends_on_the_batch_size(capsys, tmp_path, norm, config):
    """Nor on rounding: 50 random layers make 1e-3 of float32's."""
    found = []
    for size in (3, 10):
        folder = tmp_path / str(size)
        options = ["--norms", norm, "--images", 10, "--batch-size", size, "--inputs", "random"]
        status, _ = run(capsys, "analyse", *config, *options, "--out", folder, "--format", "json")
        assert status == 0
        found.append(json.loads((folder / "results.json").read_text())["power"][norm])
    for layer, power in found[0].items():
        assert power == pytest.approx(found[1][layer], rel=1e-6, abs=1e-12)


def test_a_trained_network_its_epochs_and_its_beginning(trained, capsys, tmp_path):
    results = {}
    for name, options in {
        "last": ["--images", 64],
        "init": ["--images", 64, "--checkpoint", "init"],
        "epochs": ["--epochs"],  # of 64 images
    }.items():
        folder = tmp_path / name
        options = [*options, "--format", "json", "--out", folder]
        assert run(capsys, "analyse", trained, *options)[0] == 0
        results[name] = json.loads((folder / "results.json").read_text())["power"]["bn"]
    assert list(results["last"]) == list(results["init"]) == list(results["epochs"])
    # One epoch: its mean is its end. Running statistics: no longer exactly 0, as at the beginning.
    for layer, power in results["last"].items():
        assert power == pytest.approx(results["epochs"][layer], rel=1e-6)
    assert results["last"]["norm"]["p1"] > 1e-6
    assert results["init"]["norm"]["p1"] < 1e-10


def test_several_runs_are_drawn_together(trained, capsys, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(trained, other)
    options = ["--images", 8, "--format", "json", "--out", tmp_path / "out"]
    status, output = run(capsys, "analyse", trained, other, *options)
    assert status == 0
    assert "bn (quickstart): 7 normalizations" in output.out
    assert "bn (other): 7 normalizations" in output.out
    namesake = tmp_path / "more" / "other"
    shutil.copytree(trained, namesake)
    status, output = run(capsys, "analyse", other, namesake, other, *options)
    assert f"bn ({other}): 7 normalizations" in output.out
    assert f"bn ({namesake}): 7 normalizations" in output.out
    config = (namesake / "config.yaml").read_text()
    (namesake / "config.yaml").write_text(config.replace("resnetv2_8", "resnetv2_20"))
    status, output = run(capsys, "analyse", other, namesake, *options)
    assert status == 2
    assert "these are resnetv2_8 on digits and resnetv2_20 on digits" in output.err


WRONG = {
    "groups": ([*RANDOM, "--norms", "gn5"], ["norm=gn5", "nearest number of groups", "4"]),
    "norm": ([*RANDOM, "--norms", "ln+pm"], ["--norms=ln+pm", "did you mean 'ln+pn'"]),
    "no norm": ([*RANDOM, "--norms", ","], ["--norms=,", "expected norm specs"]),
    "empty norms": ([*RANDOM, "--norms", ""], ["--norms=: expected norm specs"]),
    "layers": (
        [*RANDOM, "--norms", "ln", "--layers", "layer.0.1"],
        ["'layer.0.1' matches none of the network's 50", "layers.0.1"],
    ),
    "images": ([*RANDOM, "--images", "0"], ["--images=0: expected 1 or more"]),
    "format": ([*RANDOM, "--format", "htm"], ["--format 'htm'", "'html'"]),
    "two configs": ([*RANDOM, QUICK], [QUICK, "expected key=value"]),
    "checkpoint": ([*RANDOM, "--checkpoint", "best"], ["--checkpoint: expected a run's folder"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_gets_one_sentence(capsys, tmp_path, case):
    arguments, parts = WRONG[case]
    status, output = run(capsys, "analyse", *arguments, "--out", tmp_path / "out")
    assert status == 2
    assert output.err.count("\n") == 1
    for part in parts:
        assert part in output.err
    assert list(tmp_path.iterdir()) == []


def test_wrong_runs_get_one_sentence(trained, capsys, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text((trained / "config.yaml").read_text())
    for arguments, part in (
        ([tmp_path], "no config.yaml in it; expected the folder of a run"),
        ([bare], "no such checkpoint"),
        ([bare, "--epochs"], "expected a run trained with training.analyse_every"),
        ([trained, "--out", bare / "config.yaml"], "config.yaml': not a folder); choose another"),
        ([trained, "--epochs", "--layers", "norm"], "--layers=norm: what training recorded"),
        ([trained, "--epochs", "--batch-size", "8"], "leave out --batch-size, or --epochs"),
        ([trained, "--norms", "ln"], "a run has one norm"),
        ([trained, "model.norm=ln"], "is what it was trained with"),
        ([trained, "--layers", "layer9.*"], "matches none of the network's 7 normalizations"),
    ):
        status, output = run(capsys, "analyse", "--out", tmp_path / "out", *arguments)
        assert (status, part in output.err, output.err.count("\n")) == (2, True, 1), output.err
        assert output.out == ""  # before anything was computed
