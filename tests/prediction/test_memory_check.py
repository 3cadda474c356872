"""A program that cannot fit is refused when it compiles, with advice that makes it fit."""

import dataclasses
import re
import time
import warnings

import pytest
import torch

from ipu_proxynorm.cli.main import notices_alone
from ipu_proxynorm.config import dump, load, loads
from ipu_proxynorm.data import described_data
from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.ipu import training_options
from ipu_proxynorm.memory import advise, predict_capture
from ipu_proxynorm.memory.predict import Verdict
from ipu_proxynorm.prediction.advice import changed_keys, run_advice
from ipu_proxynorm.prediction.check import judge, memory_check, surely_fits
from ipu_proxynorm.prediction.footprint import footprint, micro_batch
from ipu_proxynorm.run.run import create_program
from ipu_proxynorm.training.executor import TrainingExecutor

QUICKSTART = "configs/quickstart.yaml"
RESNET50 = [
    "model.name=resnetv2_50", "model.norm=gn4", "data.name=image_folder", "data.image_size=224",
    "ipu.precision=16.16", "ipu.splits=[]", "ipu.replication_factor=1", "ipu.micro_batch_size=64",
]  # fmt: skip

SMALLER = [
    "model.name=resnetv2_14", "model.norm=gn4+pn", "data.name=image_folder", "data.image_size=64",
    "ipu.precision=16.32", "ipu.micro_batch_size=256",
]  # fmt: skip


def executor(overrides):
    """The training program of a configuration, and inputs of one host call."""
    config = load(QUICKSTART, overrides)
    data = described_data(config.data.name, config.data.path, config.data.image_size)
    _, _, program, optimizer = create_program(config, data, 64)
    options = training_options(config)
    check = memory_check(config, program, options, optimizer)
    batch = config.ipu.micro_batch_size * config.ipu.gradient_accumulation
    images = torch.zeros(
        batch * config.ipu.replication_factor, data.channels, *data.image_size, dtype=torch.uint8
    )
    inputs = [images, torch.zeros(len(images), dtype=torch.long)]
    made = TrainingExecutor(program, options, optimizer, config.seed, check=check)
    return made, inputs, config


def test_resnet50_at_micro_batch_64_on_one_mk2_is_refused_with_advice_that_helps():
    made, inputs, config = executor([*RESNET50, "ipu.gradient_accumulation=1"])
    with pytest.raises(UserError, match=r"will not fit, by prediction .*out of memory") as caught:
        made.compile(*inputs)
    assert not made.executor.isCompiled()
    text = str(caught.value)
    for words in ("ipu.check_memory=false", "activations", "capacity", "897", "- micro-batch"):
        assert words in text
    followed = [predicted(config, overrides) for overrides, _ in advice_in(text)]
    assert [f"{verdict.utilisation:.0%}" for verdict in followed] == [x for _, x in advice_in(text)]
    assert "fits" in {verdict.name for verdict in followed}


def advice_in(text):
    """The overrides of each piece of advice in a message, and what is then full, e.g. 81%."""
    found = re.findall(
        r"^- .* \((ipu\.[^)]*)\): .* MiB less, then (\d+%) full$", text, re.MULTILINE
    )
    assert len(found) == text.count("\n- ")
    return [(keys.split(" "), full) for keys, full in found]


def predicted(config, overrides):
    """What is said of a run with these overrides."""
    again = footprint(loads(dump(config), overrides))
    return predict_capture(again.capture, again.layout).verdict


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        # One IPU: a pipeline needs three micro-batches.
        (["ipu.splits=[]", "ipu.gradient_accumulation=1"], ["splits", "gradient_accumulation"]),
        (["ipu.splits=[layer3.0]", "ipu.gradient_accumulation=8"], ["recomputation_checkpoints"]),
        (["ipu.splits=[layer3.0]", "ipu.gradient_accumulation=8",
          "ipu.recomputation_checkpoints=[stem]"], ["splits", "recomputation_checkpoints"]),
    ],
)  # fmt: skip
def test_advice_can_be_followed_by_the_keys_that_it_names(changes, kinds):
    config = load(QUICKSTART, [*SMALLER, *changes])
    found = footprint(config)
    every = run_advice(config, found.capture, found.layout, found.points, count=9)
    keys = [changed_keys(config, found.layout, advice) for advice in every]
    assert set(kinds) <= {key for changed in keys for key in changed}
    for advice in every:
        (words,) = re.findall(r"\((ipu\.[^)]*)\)$", advice.text)
        utilisation = predicted(config, words.split(" ")).utilisation
        assert utilisation == pytest.approx(advice.utilisation, rel=0.01), advice.text


def test_recomputation_on_one_ipu_is_advice_with_its_keys():
    config = load(QUICKSTART, [*SMALLER, "ipu.splits=[]", "ipu.gradient_accumulation=1"])
    found = footprint(config)
    texts = [a.text for a in run_advice(config, found.capture, found.layout, found.points, count=9)]
    (advice,) = [text for text in texts if "recomputation from" in text]
    keys = advice.partition("(")[2].rstrip(")").split()
    assert keys[0] == "ipu.recomputation=all"
    changed = load(QUICKSTART, [*SMALLER, "ipu.splits=[]", "ipu.gradient_accumulation=1", *keys])
    assert changed.ipu.recomputation_checkpoints


def test_advice_that_no_key_follows_is_left_out():
    config = load(QUICKSTART, [*SMALLER, "ipu.splits=[]", "ipu.gradient_accumulation=1"])
    found = footprint(config)
    plain = advise(found.capture, found.layout, found.points, count=9)
    mixing = dataclasses.replace(
        config, training=dataclasses.replace(config.training, mixup_alpha=0.2)
    )
    (smaller,) = [advice for advice in plain if advice.text.startswith("micro-batch")]
    assert changed_keys(mixing, found.layout, smaller) is not None
    alone = dataclasses.replace(smaller, micro_batch=1)
    assert changed_keys(mixing, found.layout, alone) is None


def test_the_check_can_be_turned_off_and_is_not_made_for_others(monkeypatch):
    from ipu_proxynorm.prediction import check as module

    monkeypatch.setattr(module, "surely_fits", lambda *_: pytest.fail("looked at"))
    made, inputs, _ = executor(["ipu.check_memory=false"])
    made.compile(*inputs)
    assert made.executor.isCompiled()


def test_an_uncertain_program_is_warned_of(capsys):
    found = footprint(load(QUICKSTART))
    prediction = predict_capture(found.capture, found.layout)
    object.__setattr__(prediction, "verdict", Verdict("uncertain", 1, 0.97, 0.9, 1.1))
    with pytest.warns(UserNotice, match="memory uncertain: IPU 1 is the fullest, at 97%"):
        judge(prediction)
    with notices_alone():
        judge(prediction)
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith("ipu-proxynorm: warning: memory uncertain: IPU 1 is the fullest")
    object.__setattr__(prediction, "verdict", Verdict("fits", 1, 0.5, 0.4, 0.6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge(prediction)


@pytest.mark.parametrize("norm", ["bn", "gn4+pn", "ln+pn"])
def test_the_bound_is_above_the_prediction(norm):
    """What is waved through surely fits: on small networks the bound exceeds the prediction."""
    config = load(QUICKSTART, [f"model.norm={norm}", "ipu.splits=[]"])
    found = footprint(config)
    with torch.device("meta"):
        data = described_data(config.data.name, config.data.path, config.data.image_size)
        _, _, program, _ = create_program(config, data, 32)
    inputs = micro_batch(config.ipu.micro_batch_size, config.training, data)
    start = time.process_time()
    assert surely_fits(program, inputs, found.layout)
    assert time.process_time() - start < 0.1
    assert predict_capture(found.capture, found.layout).verdict.utilisation < 0.3
    large = [inputs[0].new_empty((64, 1, 64, 64)), inputs[1]]
    assert not surely_fits(program, large, found.layout)
