"""What goes wrong around a run: one sentence, a status other than 0, and nothing lost."""

import json
import multiprocessing
import os
import pickle
import resource
import signal
import sys

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load
from ipu_proxynorm.data import DataError
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.run import build
from ipu_proxynorm.run.state import read_state
from ipu_proxynorm.training import EpochResult, StepResult, fit

PATIENCE = 300  # seconds
ROOT = os.path.abspath(".")
SMALL = [
    "configs/quickstart.yaml",
    "model.width=4",
    "ipu.splits=[]",
    "ipu.gradient_accumulation=1",
    "ipu.micro_batch_size=64",
    "training.epochs=3",
]


class Command:
    """``run_ipu.py train`` in a process of its own."""

    def __init__(self, runs, *arguments, before=None):
        self.folder = runs / "quickstart"
        self.errors = runs / "errors.txt"
        self.process = multiprocessing.get_context("fork").Process(
            target=self.main, args=([*SMALL, f"runs={runs}", *arguments], before)
        )
        self.process.start()

    def main(self, arguments, before):
        with self.errors.open("w", buffering=1) as errors, open(os.devnull, "w") as nothing:
            sys.stdout, sys.stderr = nothing, errors
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if before is not None:
                before()
            status = main(["train", *arguments])
        os._exit(status)

    def end(self):
        """Return the exit status and the last line of what was printed."""
        self.process.join(PATIENCE)
        return self.process.exitcode, self.errors.read_text().splitlines()[-1]


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def step_of(folder):
    return load_checkpoint(folder / "last.pt").state.progress.step


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGXCPU, 152)]
)
def test_a_signal_writes_a_checkpoint_first_and_the_run_goes_on(tmp_path, at_call, number, status):
    command = Command(tmp_path, before=lambda: at_call(3, lambda: os.kill(os.getpid(), number)))
    ended, said = command.end()
    assert ended == status
    assert "interrupted after epoch 0, host call 3 of epoch 1" in said
    assert "go on with --resume" in said
    assert step_of(command.folder) == 3
    ended, said = Command(tmp_path, "training.epochs=1").end()
    assert (ended, "--resume" in said) == (2, True)  # not overwritten unasked
    assert main(["train", *SMALL, f"runs={tmp_path}", "--resume", "training.epochs=1"]) == 0
    assert step_of(command.folder) == 11


def test_a_run_killed_with_its_data_workers_goes_on_at_once_with_the_same_records(
    tmp_path, at_call
):
    workers = ["data.workers=2", "training.epochs=1"]
    assert main(["train", *SMALL, f"runs={tmp_path / 'whole'}", *workers]) == 0
    # The first checkpoint is at the end of the epoch.
    command = Command(tmp_path, *workers, before=lambda: at_call(3, killed))
    command.process.join()
    assert command.process.exitcode == -signal.SIGKILL
    assert main(["train", *SMALL, f"runs={tmp_path}", "--resume", *workers]) == 0
    records, steps = [], []
    for folder in (tmp_path / "whole" / "quickstart", command.folder):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        records.append([{**line, "images_per_second": 0} for line in lines])
        events = EventAccumulator(str(folder / "tensorboard")).Reload()
        steps.append([(event.step, event.value) for event in events.Scalars("train/loss")])
    assert records[0] == records[1]
    assert steps[0] == steps[1]
    assert len(steps[0]) == 11


def test_a_reader_that_leaves_ends_a_run_with_a_checkpoint(tmp_path, at_call):
    reader, writer = os.pipe()

    def print_there():
        sys.stdout = os.fdopen(writer, "w", buffering=1)
        at_call(3, lambda: os.close(reader))

    command = Command(tmp_path, before=print_there)
    os.close(writer)
    os.close(reader)
    status, said = command.end()
    assert status == 128 + signal.SIGPIPE
    assert "interrupted after epoch" in said
    assert step_of(command.folder) >= 1
    assert read_state(command.folder).state == "stopped"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full (Linux)")
def test_a_run_goes_on_where_its_output_cannot_be_written(tmp_path):
    def print_there():
        sys.stdout = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w", buffering=1)

    status, said = Command(tmp_path, "training.epochs=1", before=print_there).end()
    assert status == 0
    assert "what is printed cannot be written (No space left on device); the run goes on" in said


def test_a_second_ctrl_c_stops_at_once(tmp_path, at_call):
    def twice():
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    command = Command(tmp_path, before=lambda: at_call(3, twice))
    status, said = command.end()
    assert status == 130
    assert said == "ipu-proxynorm: interrupted"
    assert "once more: at once" in command.errors.read_text()
    assert not (command.folder / "last.pt").exists()


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, capsys):
    assert main(["train", *SMALL, f"runs={tmp_path}", "training.epochs=1"]) == 0
    folder = tmp_path / "quickstart"

    def limit():
        # The limit holds for shared memory, too: the images' cache is smaller than this.
        size = (folder / "last.pt").stat().st_size - 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    status, said = Command(tmp_path, "--resume", "training.epochs=2", before=limit).end()
    assert status == 2
    assert "Traceback" not in (tmp_path / "errors.txt").read_text()
    assert "cannot be written (" in said
    assert "choose another folder with runs=FOLDER" in said
    assert step_of(folder) == 11
    assert not list(folder.glob(".*"))
    assert main(["train", *SMALL, f"runs={tmp_path}", "--resume", "training.epochs=2"]) == 0
    assert step_of(folder) == 22


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full (Linux)")
@pytest.mark.parametrize("name", ["metrics.jsonl", ".last.pt.part"])
def test_no_space_left_is_one_sentence(tmp_path, name):
    config = load(SMALL[0], [f"runs={tmp_path}", *SMALL[1:], "training.checkpoint_every=1"])
    directory = RunDirectory.create(config)
    (directory.path / name).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        next(fit(build(config), directory))
    directory.close()


def test_a_run_folder_that_vanishes_is_one_sentence(tmp_path):
    config = load(SMALL[0], [f"runs={tmp_path}", *SMALL[1:]])
    directory = RunDirectory.create(config)
    results = fit(build(config), directory)
    next(results)
    directory.path.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"metrics.jsonl' cannot be written"):
        next(results)
    directory.close()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["runs=/dev/null/runs"], "cannot be written (Not a directory); choose another folder"),
        (["data.name=cifar10", "data.path=/none"], "/none"),
        (["data.name=image_folder", "data.path=/none"], "/none"),
    ],
)
def test_what_is_missing_is_one_sentence(tmp_path, capsys, overrides, words):
    assert main(["train", *SMALL, f"runs={tmp_path}", *overrides]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("ipu-proxynorm: error: ")
    assert words in said[0]


def half(content):
    return content[: len(content) // 2]


def flipped(content):
    return content[:5000] + bytes([content[5000] ^ 1]) + content[5001:]


def malicious(content):
    return pickle.dumps(Malicious())


class Malicious:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The folder of a run with one epoch behind it."""
    runs = tmp_path_factory.mktemp("stopped")
    assert main(["train", *SMALL, f"runs={runs}", "training.epochs=1"]) == 0
    return runs


@pytest.mark.parametrize(
    ("damage", "overrides", "words"),
    [
        (half, [], "is truncated, damaged"),
        (flipped, [], "damaged"),
        (malicious, [], "truncated, damaged or not a checkpoint"),
        (None, ["model.norm=ln+pn"], "model.norm was gn4+pn and is ln+pn"),
        (None, ["model.name=resnetv2_14"], "model.name was resnetv2_8 and is resnetv2_14"),
    ],
)
def test_a_bad_checkpoint_is_refused_and_a_good_one_offered(
    stopped, monkeypatch, capsys, damage, overrides, words
):
    last = stopped / "quickstart" / "last.pt"
    content = last.read_bytes()
    monkeypatch.chdir(stopped)
    try:
        if damage is not None:
            last.write_bytes(damage(content))
        config = [os.path.join(ROOT, SMALL[0]), *SMALL[1:]]
        assert main(["train", *config, f"runs={stopped}", "--resume", *overrides]) == 2
    finally:
        last.write_bytes(content)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert words in said[0]
    if damage is not None:
        assert "best.pt' (epoch 1) is good: use it with --checkpoint best" in said[0]
    assert not (stopped / "pwned").exists()


def test_a_killed_worker_costs_nothing(tmp_path):
    config = load(SMALL[0], [f"runs={tmp_path}", *SMALL[1:], "data.workers=1"])
    directory = RunDirectory.create(config)
    results, steps = fit(build(config), directory), 0

    def end():
        nonlocal steps
        for result in results:
            steps += isinstance(result, StepResult)
            for child in multiprocessing.active_children():
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(DataError) as error:
        end()
    assert "data.workers: a worker process died" in str(error.value)
    assert "--resume" in str(error.value)
    assert "\n" not in str(error.value)
    assert steps >= 1
    assert step_of(directory.path) == steps
    directory.close()


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 2)):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


def test_classes_may_be_named_in_bytes_that_are_no_utf_8(tmp_path, images, capsys):
    for path in images.glob("*/cat"):
        path.rename(path.with_name("caf\udce9"))
    overrides = [
        *SMALL[1:],
        "data.name=image_folder",
        f"data.path={images}",
        "data.image_size=16",
        "ipu.replication_factor=1",
        "ipu.micro_batch_size=8",
        "training.epochs=1",
    ]
    assert main(["train", SMALL[0], f"runs={tmp_path}", *overrides]) == 0
    run = str(tmp_path / "quickstart")
    assert main(["export", run, str(tmp_path / "out.torchscript")]) == 0
    capsys.readouterr()
    assert main(["predict", run, str(images / "val" / "dog" / "0.png")]) == 0
    assert "caf\\udce9 " in capsys.readouterr().out


def damage(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.filterwarnings("ignore:data")
def test_damaged_images_are_named_up_to_a_limit_then_the_run_stops(tmp_path, images):
    overrides = [
        f"runs={tmp_path}",
        *SMALL[1:],
        "data.name=image_folder",
        f"data.path={images}",
        "data.image_size=16",
        "ipu.replication_factor=1",
        "ipu.micro_batch_size=8",
        "training.epochs=1",
    ]
    for name in ("cat/1.png", "dog/2.png"):
        damage(images / "train" / name)
    config = load(SMALL[0], [*overrides, "data.max_corrupt=2"])
    directory = RunDirectory.create(config)
    with pytest.warns(UserWarning, match=r"is damaged.*data.max_corrupt=2") as said:
        results = list(fit(build(config), directory))
    directory.close()
    assert len(results) == 3
    assert len({str(warning.message) for warning in said if "damaged" in str(warning)}) == 2
    config = load(SMALL[0], [*overrides, "data.max_corrupt=1"])
    directory = RunDirectory.create(config, overwrite=True)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(
        DataError, match=r"data.max_corrupt=1: 2 files .*dog/2.png"
    ):
        list(fit(build(config), directory))
    directory.close()


def test_damaged_validation_images_count_too_and_the_epoch_is_kept(tmp_path, images):
    overrides = [
        f"runs={tmp_path}",
        *SMALL[1:],
        "data.name=image_folder",
        f"data.path={images}",
        "data.image_size=16",
        "ipu.replication_factor=1",
        "ipu.micro_batch_size=8",
        "training.epochs=2",
    ]
    for name in ("cat/1.png", "dog/0.png"):
        damage(images / "val" / name)
    config = load(SMALL[0], [*overrides, "data.max_corrupt=1"])
    directory = RunDirectory.create(config)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(
        DataError,
        match=r"data.max_corrupt=1: 2 files .*val/dog/0.png.*host call 2 of epoch 1: --re",
    ):
        list(fit(build(config), directory))
    directory.close()
    # Nothing of the epoch is lost: what is left of it is its validation.
    config = load(SMALL[0], [*overrides, "data.max_corrupt=2"])
    start = load_checkpoint(directory.checkpoint("last"))
    assert start.state.progress.call == 2
    directory = RunDirectory.reopen(config)
    with pytest.warns(UserWarning, match="is damaged") as said:
        results = list(fit(build(config), directory, start))
    directory.close()
    ended = [result for result in results if isinstance(result, EpochResult)]
    assert [(result.epoch, result.validation.images) for result in ended] == [(1, 2), (2, 2)]
    assert len(results) == 2 + 2
    assert len([w for w in said if "damaged" in str(w.message)]) == 2  # each once a run
