"""Going on with a run: bit for bit what it would have been, or refused in one sentence."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import socket
import threading
import time
import warnings

import pytest
import torch
from torch.utils.data import Subset

from ipu_proxynorm.config import dump, load
from ipu_proxynorm.data import watched
from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.files import checkpoint
from ipu_proxynorm.files.checkpoint import Progress, load_checkpoint, save_checkpoint
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.interruption import Interrupted, Interruption
from ipu_proxynorm.run.run import build
from ipu_proxynorm.run.state import RunState, write_state
from ipu_proxynorm.simulator.device import together
from ipu_proxynorm.training import StepResult, fit, validation
from ipu_proxynorm.training.resume import capture, changed

CALLS = 3  # of 32 images an epoch


def small_run(tmp_path, *overrides):
    """Two epochs of three host calls, with everything that draws random numbers."""
    config = load(
        "configs/quickstart.yaml",
        [
            f"runs={tmp_path}",
            "training.epochs=2",
            "training.checkpoint_every=1",
            "data.augment=crop",
            "training.mixup_alpha=0.2",
            "model.width=4",
            *overrides,
        ],
    )
    run = build(config)
    run.model.fc = torch.nn.Sequential(torch.nn.Dropout(0.3), run.model.fc)
    data = dataclasses.replace(
        run.data,
        train=Subset(run.data.train, range(100)),
        validation=Subset(run.data.validation, range(30)),
    )
    arithmetic = dataclasses.replace(run.arithmetic, images=100)
    return dataclasses.replace(run, data=data, arithmetic=arithmetic)


def train(tmp_path, *overrides, stop_after=None):
    """Train, or go on with what lies in the folder; return it, left after ``stop_after`` steps."""
    run = small_run(tmp_path, *overrides)
    directory = RunDirectory.reopen(run.config)
    last = directory.checkpoint("last")
    results = fit(run, directory, load_checkpoint(last) if last.exists() else None)
    steps = (result for result in results if isinstance(result, StepResult))
    taken = list(itertools.islice(steps, stop_after))
    results.close()
    directory.close()
    return directory, [dataclasses.replace(step, images_per_second=0) for step in taken]


def assert_same(ours, theirs):
    one, other = (load_checkpoint(directory.checkpoint("last")) for directory in (ours, theirs))
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name]), name
    assert one.state.progress == other.state.progress
    for name, tensor in one.state.optimizer["ipu_state"].items():
        assert torch.equal(tensor, other.state.optimizer["ipu_state"][name]), name
    assert torch.equal(one.state.streams, other.state.streams)
    lines = [
        [json.loads(line) for line in (directory.path / "metrics.jsonl").open()]
        for directory in (ours, theirs)
    ]
    for line in itertools.chain(*lines):
        line.pop("images_per_second", None)
    assert lines[0] == lines[1]


@pytest.mark.parametrize(
    ("overrides", "images", "at_once"),
    [
        (["model.norm=bn", "optimizer.name=adamw", "optimizer.momentum=null"], "", 8),
        (["schedule.name=constant", "schedule.warmup_epochs=0"], "0", 1),
        (
            ["ipu.precision=16.16", "ipu.stochastic_rounding=true", "optimizer.loss_scaling=128"],
            "",
            1,
        ),
    ],
    ids=[
        "bn, adamw, micro-batches together",
        "constant, micro-batches one after the other",
        "float16, stochastically rounded",
    ],
)
def test_a_run_left_again_and_again_ends_as_one_never_left(
    tmp_path, monkeypatch, overrides, images, at_once
):
    monkeypatch.setenv("POPTORCH_SIM_TOGETHER", images)
    whole, steps = train(tmp_path / "whole", *overrides)
    assert len(steps) == 2 * CALLS
    ways = load_checkpoint(whole.checkpoint("last")).state.ways
    assert ways["micro-batches computed at once"] == at_once
    taken = []
    for free in (1 << 20, None):  # bytes of memory, when it is resumed: the way stays the same
        monkeypatch.setattr(together, "free_memory", lambda free=free: free)
        part, more = train(tmp_path / "parts", *overrides, stop_after=2)
        taken += more
    part, more = train(tmp_path / "parts", *overrides)
    assert taken + more == steps
    assert_same(part, whole)


def test_a_run_that_goes_on_in_another_way_says_so(tmp_path, monkeypatch):
    train(tmp_path, stop_after=1)
    monkeypatch.setenv("POPTORCH_SIM_TOGETHER", "0")
    with pytest.warns(UserNotice, match=r"not bit for bit.*at once: 8, now 1 \(POPTORCH_SIM_TOG"):
        train(tmp_path, stop_after=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserNotice)
        train(tmp_path, stop_after=1)


def test_what_was_logged_after_the_checkpoint_is_done_and_logged_again(tmp_path):
    overrides = ["training.checkpoint_every=2"]
    whole, _ = train(tmp_path / "whole", *overrides)
    directory, _ = train(tmp_path / "parts", *overrides, stop_after=2)
    with (directory.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "train", "step": 3, "lo')  # killed while it wrote
    part, more = train(tmp_path / "parts", *overrides)
    assert [step.step for step in more] == [3, 4, 5, 6]
    assert_same(part, whole)


@pytest.mark.parametrize("where", ["before the validation", "within it"])
def test_a_stop_between_an_epochs_last_call_and_its_end(tmp_path, monkeypatch, where):
    overrides = ["ipu.precision=16.16", "ipu.stochastic_rounding=true"]
    overrides += ["training.average=mean", "model.norm=bn", "ipu.inference_device_iterations=2"]
    whole, _ = train(tmp_path / "whole", *overrides)
    run, interruption = small_run(tmp_path / "parts", *overrides), Interruption()
    directory = RunDirectory.reopen(run.config)
    validated = []

    def steps():
        for number, _ in enumerate(fit(run, directory, None, interruption), start=1):
            if number == CALLS and where == "before the validation":
                interruption.signal_number = signal.SIGTERM

    def batches(loader, patience):
        for batch in watched(loader, patience):
            if validated:
                interruption.signal_number = signal.SIGTERM
            validated.append(batch)
            yield batch

    monkeypatch.setattr(validation, "watched", batches)
    with pytest.raises(Interrupted, match="interrupted after epoch 0, host call 3 of epoch 1"):
        steps()
    directory.close()
    assert len(validated) == (2 if where == "within it" else 0)
    monkeypatch.undo()
    # The next part ends with the epoch: training is not compiled in it.
    run = small_run(tmp_path / "parts", *overrides)
    directory = RunDirectory.reopen(run.config)
    results = fit(run, directory, load_checkpoint(directory.checkpoint("last")))
    assert next(results).validation.images == 30
    results.close()
    directory.close()
    part, more = train(tmp_path / "parts", *overrides)
    assert len(more) == CALLS
    assert_same(part, whole)


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path):
    directory, _ = train(tmp_path, "training.keep_checkpoints=3")
    assert directory.checkpoints() == ["last", "last-1", "last-2", "best"]
    steps = [
        load_checkpoint(directory.checkpoint(name)).state.progress.step
        for name in directory.checkpoints()
    ]
    assert steps[:3] == [6, 5, 4]
    assert not list(directory.path.glob(".*"))


def test_another_layout_of_the_same_batch_goes_on(tmp_path):
    train(tmp_path, stop_after=4)
    layout = ["ipu.replication_factor=1", "ipu.gradient_accumulation=8"]
    _, more = train(tmp_path, *layout)
    assert [step.step for step in more] == [5, 6]


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """The last checkpoint of a run left within its second epoch."""
    directory, _ = train(tmp_path_factory.mktemp("left"), stop_after=CALLS + 1)
    return load_checkpoint(directory.checkpoint("last"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.norm=ln+pn", ["model.norm was gn4+pn and is ln+pn"]),
        ("model.name=resnetv2_14", ["model.name was resnetv2_8 and is resnetv2_14"]),
        ("seed=3", ["seed was 0 and is 3"]),
        ("optimizer.lr=0.5", ["optimizer.lr was 0.1 and is 0.5"]),
        ("ipu.micro_batch_size=2", ["32 images behind a weight update", "lays out 16"]),
        ("training.epochs=1", ["has finished its 1 epochs", "training.epochs=1"]),
    ],
)
def test_another_run_is_refused(tmp_path, left, override, words):
    with pytest.raises(UserError) as refusal:
        next(fit(small_run(tmp_path, override), RunDirectory(tmp_path), left))
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_what_has_changed_and_may_is_said_with_both_values(tmp_path):
    before = small_run(tmp_path)
    kept = capture(before, None, Progress(), dump(before.config), 0, {}, {})
    path = tmp_path / "a.pt"
    save_checkpoint(path, kept)
    kept = load_checkpoint(path)
    assert changed(small_run(tmp_path), kept) == []
    now = small_run(tmp_path, "training.epochs=5", "data.workers=2")
    assert changed(now, kept) == [
        "data.workers was 0 and is 2",
        "training.epochs was 2 and is 5",
    ]
    fewer = Subset(now.data.train.dataset, range(99))
    now = dataclasses.replace(now, data=dataclasses.replace(now.data, train=fewer))
    *_, images = changed(now, kept)
    assert re.fullmatch(
        r"the data set was 100 and 30 images \(\w+\) and is 99 and 30 images \(\w+\)", images
    )
    older = dataclasses.replace(kept, state=dataclasses.replace(kept.state, images=""))
    assert changed(small_run(tmp_path), older) == []


def test_a_folder_in_use_is_left_alone(tmp_path):
    config = load("configs/quickstart.yaml", [f"runs={tmp_path}"])
    directory = RunDirectory.create(config)
    for attempt in (RunDirectory.reopen, lambda config: RunDirectory.create(config, True)):
        with pytest.raises(UserError, match="another process is training this run;"):
            attempt(config)
    record = RunState("running", "", 0.0, os.getpid(), socket.gethostname())
    write_state(directory.path, record)
    named = f"training this run \\(process {os.getpid()} on {record.host}\\);"
    with pytest.raises(UserError, match=named):
        RunDirectory.reopen(config)
    directory.close()
    RunDirectory.reopen(config).close()


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_a_checkpoint(monkeypatch, number):
    """Have this process killed when that checkpoint of it is written and not yet sealed."""
    seal, seals = checkpoint.seal, itertools.count(1)

    def sealing(stream):
        if next(seals) == number:
            kill()
        seal(stream)

    monkeypatch.setattr(checkpoint, "seal", sealing)


def test_a_run_killed_at_random_instants_ends_as_one_never_killed(tmp_path, monkeypatch, at_call):
    whole, _ = train(tmp_path / "whole")
    chance = random.Random(time.time_ns())

    def train_until_killed(within_checkpoint, seconds):
        if within_checkpoint:
            kill_in_a_checkpoint(monkeypatch, 2)
        else:  # in the first host call or what follows it; by the second at the latest
            at_call(1, threading.Timer(seconds, kill).start)
            at_call(2, kill)
        train(tmp_path / "parts")

    for within_checkpoint in (False, True, False):
        process = multiprocessing.get_context("fork").Process(
            target=train_until_killed, args=(within_checkpoint, chance.uniform(0, 0.1))
        )
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    part, _ = train(tmp_path / "parts")
    assert_same(part, whole)
