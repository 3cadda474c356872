"""The stages for IPUs work, here on the simulator, and the report says on what they ran."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.simulator

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import operators  # noqa: E402
import run as runner  # noqa: E402
import stages  # noqa: E402

from ipu_proxynorm.backend import inspect  # noqa: E402
from ipu_proxynorm.config import load  # noqa: E402
from ipu_proxynorm.prediction.preflight import preflight_run  # noqa: E402
from ipu_proxynorm.training.smoke import smaller  # noqa: E402

#: Constants, and stochastic depth's random numbers, which a stage of their own tries.
NOT_TRIED = {"bernoulli_", "copy_", "empty_like", "new_ones", "ones_like"}
RECIPES = [
    ("imagenet/efficientnet_b0_g16_ln_pn_native.yaml", "training.mixup_alpha=0.2"),
    ("imagenet/resnetv2_50_bn.yaml", "training.cutmix_lambda_low=0.5"),
    ("quickstart.yaml", "model.norm=gn4+pn+ws"),
]


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """Exit status of all stages, tried in this process, and the report."""
    folder = tmp_path_factory.mktemp("hardware")
    path = folder / "report.md"
    status = runner.run(stages.STAGES, folder, path, runner.tried_here)
    return status, path.read_text(encoding="utf-8")


def test_all_stages_pass_and_the_report_says_on_what(tried):
    status, report = tried
    assert status == 0, report
    assert "**Ran on the simulator: this shows that the stages work, nothing of IPUs.**" in report
    assert "- backend: simulator" in report
    for stage in stages.STAGES:
        here = stage.name in ("measured-memory", "suite")
        assert f"| {stage.name} | {'not here' if here else 'passed'} |" in report
        assert f"## {stage.name}: " in report


def test_every_operator_of_our_programs_is_tried():
    kinds = set()
    for _, executor, weights in operators.executors():
        found = inspect(executor, weights)
        assert not found.refusals
        kinds |= set(found.kinds)
    for recipe, change in RECIPES:
        small = smaller(load(recipe, [change]))
        for flight in preflight_run(small, memory=False, shallow=True).flights:
            assert set(flight.kinds) - kinds - NOT_TRIED == set(), recipe


def test_an_operator_that_differs_is_named(monkeypatch):
    case = operators.CASES[8]._replace(name="wrong")
    monkeypatch.setattr(operators, "CASES", [case])
    monkeypatch.setattr(operators, "LAYERS", [])
    device = operators.run

    def run(program, weights):
        return {name: 1.01 * value for name, value in device(program, weights).items()}

    monkeypatch.setattr(operators, "run", run)
    said = []
    failed = operators.failures(said.append)
    assert [text.split(":")[0] for text in failed] == ["wrong, float32"]
    assert "expected at most 0.0001" in failed[0]


def test_the_first_failure_stops_and_says_what_to_look_at(tmp_path, capsys):
    def fail(work):
        work.say("here")
        stages.require(False, "the loss does not fall")

    made = stages.Stage("made", "pigs fly", "the pigs", fail)
    path = tmp_path / "report.md"
    status = runner.run([made, *stages.STAGES], tmp_path, path, runner.tried_here)
    assert status == 1
    report = path.read_text(encoding="utf-8")
    assert "| made | failed |" in report
    assert "Stopped; look at: the pigs." in report
    assert "the loss does not fall" in report
    assert f"{len(stages.STAGES) - 1} of {len(stages.STAGES)} stages were not tried." in report
    assert "look at: the pigs" in capsys.readouterr().out


def test_losses_that_differ_fail_the_stage(tmp_path, monkeypatch):
    (tmp_path / "reference.json").write_text(str([2.0, 1.0]), encoding="utf-8")
    monkeypatch.setattr(stages, "losses", lambda config: [2.0, 1.1])
    with pytest.raises(AssertionError, match=r"losses differ by 1\.0e-01"):
        stages.compare_losses(stages.Work(tmp_path), "made", stages.ONE_IPU)


def test_a_stage_runs_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, str(HERE / "run.py"), "--only", "doctor"]
    done = subprocess.run(
        [*command, "--report", str(tmp_path / "report.md")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "doctor: passed" in done.stdout
    assert "1 of 1 stages passed (on the simulator" in done.stdout
