"""``run_ipu.py plan``: prints the choice, writes what ``train`` accepts, refuses in a sentence."""

import csv
import dataclasses
import html
import json
import re

import pytest

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load, loads
from ipu_proxynorm.memory import SAFE, predict_capture
from ipu_proxynorm.memory.planner import SAME_SPEED
from ipu_proxynorm.prediction.planning import plan_run, planned_config, planned_yaml, reasons

QUICKSTART = "configs/quickstart.yaml"


@pytest.fixture(scope="module")
def planned():
    """Many plans for the quickstart on four IPUs."""
    return plan_run(load(QUICKSTART), ipus=4, batch=32, keep=50)


def test_plan_writes_a_configuration_that_trains(tmp_path, capsys):
    path = tmp_path / "planned" / "run.yaml"
    assert main(["plan", QUICKSTART, "--system", "m2000", "--output", str(path)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "32 images an update on 4 IPUs (mk2)",
        "chosen",
        "as given",
        "fits on one IPU",
        "memory proportion",
        "of 29 programs at twice the largest micro-batch that was published, 2 were said to fit",
        "model.channel_grouping=strided is Graphcore's faster Group Norm",
    ):
        assert words in printed
    assert f"configuration: {path}" in printed
    assert main(["train", str(path), f"runs={tmp_path}", "training.epochs=1"]) == 0
    assert "32 images (combined batch)" in capsys.readouterr().out


def test_a_report_shows_the_choice_with_its_reasons(tmp_path, capsys):
    command = ["plan", QUICKSTART, "--ipus", "2", "--out", str(tmp_path / "report")]
    assert main([*command, "--format", "html,svg,csv,json"]) == 0
    printed = capsys.readouterr().out
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert names == {"report.html", "speed.svg", "ipus.svg", "table.csv", "results.json"}
    assert all(f"wrote {tmp_path / 'report' / name}" in printed for name in names)
    with (tmp_path / "report" / "table.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [rows[0]["layout"], rows[-1]["layout"]] == ["chosen", "as given"]
    assert (rows[-1]["stages"], rows[-1]["splits"]) == ("2", "layer2.0")
    values = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [one["layout"] for one in values["layouts"]] == [row["layout"] for row in rows]
    text = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert text.count("<svg role=") == 2
    assert text.index("<svg role=") < text.index("<table>")
    for words in ("Layouts of quickstart", "Chosen", "as given", "MiB on each IPU", "splits:"):
        assert words in text
    for reason in re.findall(r"^- (.*)$", printed, re.MULTILINE):
        assert reason in html.unescape(text)


def test_a_planned_pipeline_with_checkpoint_trains(planned, tmp_path, capsys):
    (plan, *_) = [p for p in planned.plans.fitting if p.batch.stages == 2]
    text = planned_yaml(planned.config, plan)
    assert "# Planned with ipu-proxynorm plan for" in text
    assert "2 (stages)" in text
    config = loads(text)
    assert config == planned_config(planned.config, plan)
    assert len(config.ipu.splits) == 1
    asked = dataclasses.replace(planned.config)
    asked.environment = {"training.wandb": "${oc.env:P_}"}
    assert "wandb: ${oc.env:P_}\n" in planned_yaml(asked, plan)
    path = tmp_path / "run.yaml"
    path.write_text(text)
    keep = "ipu.recomputation_checkpoints=[stem]"
    assert main(["train", str(path), f"runs={tmp_path}", "training.epochs=1", keep]) == 0
    assert "epoch 1/1" in capsys.readouterr().out


def test_the_given_layout_is_predicted_beside(planned):
    batch = planned.given.batch
    assert (batch.stages, batch.replicas, batch.micro_batch) == (2, 2, 4)
    assert planned.given.splits == ("model.layer2.0",)
    assert planned.best.images_per_second * SAME_SPEED >= planned.given.images_per_second


@pytest.mark.parametrize(("combined", "measured"), [(False, [1720]), (True, [1720, 1840])])
def test_resnet_50_on_one_ipu_is_laid_out_as_mlperf_did(combined, measured):
    """MLPerf 1.0 and 1.1: micro-batch 20 in 16.16, 1,720 to 1,840 images/s an IPU.

    Momentum was float16 and on chip there; PopTorch has that in the combined form alone.
    """
    config = load(
        "configs/imagenet/resnetv2_50_bn.yaml",
        [
            "model.name=resnet50",
            *(["optimizer.name=sgd_combined"] if combined else []),
            "ipu.precision=16.16",
            "ipu.half_partials=true",
            "ipu.available_memory_proportion=null",
        ],
    )
    planned = plan_run(config, ipus=1, batch=960)
    assert planned.best.batch.micro_batch >= 16
    for images_per_second in measured:
        assert planned.best.images_per_second == pytest.approx(images_per_second, rel=0.15)
    ours = planned_config(config, planned.best).ipu
    assert ours.recomputation in ("standard", "all")
    if not combined:
        assert 0.1 <= ours.available_memory_proportion[0] < 0.6
    assert any(f"ipu.recomputation={ours.recomputation}" in reason for reason in reasons(planned))
    # Published programs tune the memory proportion: each layout has the largest with which it fits.
    lowered = [plan for plan in planned.plans.fitting if plan.proportion is not None]
    assert lowered
    for plan in lowered:
        wider = (round(plan.proportion + 0.01, 2),)
        layout = dataclasses.replace(plan.prediction.layout, available_memory_proportion=wider)
        given = predict_capture(plan.prediction.capture, layout, advise=False)
        assert plan.prediction.verdict.utilisation <= SAFE < given.verdict.utilisation


def test_what_the_layout_does_not_allow_is_left_out(planned):
    config = load(
        QUICKSTART,
        [
            "ipu.splits=[]",
            "ipu.execution=sharded",
            "ipu.overlap_io=true",
            "ipu.io_tiles=32",
            "ipu.merge_all_reduce=true",
        ],
    )
    plans = plan_run(config, ipus=2, batch=32, keep=50).plans.fitting
    alone = next(p for p in plans if (p.batch.stages, p.batch.replicas) == (1, 1))
    pipeline = next(p for p in plans if p.batch.stages == 2)
    kept, left = (planned_config(config, plan).ipu for plan in (alone, pipeline))
    assert (kept.overlap_io, kept.execution, kept.merge_all_reduce) == (True, "sharded", False)
    assert (left.overlap_io, left.execution, left.io_tiles) == (False, "pipelined", 32)


def test_mixing_needs_micro_batches_to_mix():
    config = load(QUICKSTART, ["training.mixup_alpha=0.2"])
    plans = plan_run(config, ipus=4, batch=32, keep=50).plans.fitting
    assert min(plan.batch.micro_batch for plan in plans) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--ipus", "0"], "--ipus 0: expected at least 1 IPU"),
        (["--ipus", "-3"], "--ipus -3: expected at least 1 IPU"),
        (["--system", "pod15"], "--system 'pod15' is unknown: did you mean 'pod16'"),
        (["--ipus", "4", "--global-batch", "0"], "--global-batch 0: expected at least 1 image"),
        (["--ipus", "4", "ipu.chip=mk3"], "ipu.chip: 'mk3' is unknown"),
        (
            ["--ipus", "4", "--global-batch", "1", "training.mixup_alpha=0.2"],
            "--global-batch 1: no micro-batch from 2 to 256 divides it",
        ),
    ],
)
def test_wrong_input_is_one_sentence(arguments, words, capsys):
    assert main(["plan", QUICKSTART, *arguments]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert len(printed.splitlines()) == 1


def test_nothing_fits_is_said_with_what_comes_nearest(capsys):
    wide = ["model.width=2048", "ipu.chip=mk1", "ipu.precision=32.32"]
    assert main(["plan", QUICKSTART, "--ipus", "1", *wide]) == 2
    printed = capsys.readouterr().err
    assert "nothing fits on 1 IPUs (mk1) with 32 images an update: nearest are 1 stages" in printed
    assert "off-chip" in printed
