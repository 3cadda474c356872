"""Several processes do, together, what one process with all replicas does."""

import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from torch.utils.data import Subset

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import load
from ipu_proxynorm.data.decoding import Reason
from ipu_proxynorm.data.watch import LeftOut
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.ipu import distribution
from ipu_proxynorm.run import meeting
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.meeting import connect
from ipu_proxynorm.run.processes import Processes
from ipu_proxynorm.run.run import build
from ipu_proxynorm.run.state import read_state
from ipu_proxynorm.training import StepResult, fit

pytestmark = pytest.mark.simulator

CONFIG = os.path.abspath("configs/quickstart.yaml")
#: 22 host calls an epoch.
SMALL = [
    CONFIG,
    "model.width=4",
    "ipu.splits=[]",
    "ipu.gradient_accumulation=1",
    "ipu.micro_batch_size=32",
    "training.epochs=1",
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


class Launched:
    """``count`` processes, as torchrun starts them, each calling ``function(*arguments)``."""

    def __init__(self, count, function, *arguments, folder=None, **environment):
        self.files = [folder / f"printed{rank}.txt" for rank in range(count)] if folder else []
        environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), **environment}
        self.children = [
            multiprocessing.get_context("fork").Process(
                target=self.child, args=(rank, count, environment, function, arguments)
            )
            for rank in range(count)
        ]
        for child in self.children:
            child.start()

    def child(self, rank, count, environment, function, arguments):
        os.environ.update(environment, RANK=str(rank), WORLD_SIZE=str(count))
        with open(self.files[rank] if self.files else os.devnull, "w", buffering=1) as stream:
            sys.stdout = sys.stderr = stream
            signal.signal(signal.SIGINT, signal.default_int_handler)
            status = function(*arguments)
        os._exit(status or 0)

    def end(self):
        """Return the exit statuses, and what each printed."""
        for child in self.children:
            child.join(100)
        alive = [child for child in self.children if child.is_alive()]
        for child in alive:
            child.kill()
        assert not alive
        return [child.exitcode for child in self.children], [f.read_text() for f in self.files]


def wait_for_lines(folder, count):
    metrics, began = folder / "metrics.jsonl", time.monotonic()
    while not metrics.exists() or metrics.read_text().count("\n") < count:
        assert time.monotonic() - began < 300, f"no {count} lines in {metrics}"
        time.sleep(0.005)


def train(*arguments):
    return main(["train", *SMALL, *arguments])


@pytest.fixture
def train_until(at_call):
    """Return what trains, and in one process does something before its third host call."""

    def train_and(rank, act, *arguments):
        if os.environ["RANK"] == str(rank):
            at_call(3, act)
        return train(*arguments)

    return train_and


def signalled(number):
    return lambda: os.kill(os.getpid(), number)


def lines(folder):
    """What was logged, but for the speed."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    for entry in entries:
        entry.pop("images_per_second", None)
    return entries


def assert_same(ours, theirs):
    """Two runs' last checkpoints hold the same, bit for bit, and they logged the same."""
    one, other = (load_checkpoint(folder / "last.pt") for folder in (ours, theirs))
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name]), name
    for name, tensor in one.state.optimizer["ipu_state"].items():
        assert torch.equal(tensor, other.state.optimizer["ipu_state"][name]), name
    assert torch.equal(one.state.streams, other.state.streams)
    assert one.state.progress == other.state.progress
    assert len(lines(ours)) == len(lines(theirs))
    for line, other_line in zip(lines(ours), lines(theirs)):
        assert line.pop("kind") == other_line.pop("kind")
        # A mean over images may be added up in another order, in float64.
        assert line == pytest.approx(other_line, rel=1e-12)


def test_torchrun_of_two_processes_one_killed_is_one_process_with_two_replicas(
    tmp_path, capsys, monkeypatch
):
    # Replicas of one process are computed together, which adds up gradients in another order.
    monkeypatch.setenv("POPTORCH_SIM_TOGETHER", "0")
    runs = [f"runs={tmp_path}", "training.mixup_alpha=0.2", "data.augment=crop"]
    runs += ["training.checkpoint_every=1"]
    assert train(*runs, "name=one") == 0
    folder = tmp_path / "two"
    # Not --standalone: on torch 2.0 that is port 29400 always, so two launches at once collide.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    torchrun += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    command = ["--max_restarts=1", "run_ipu.py", "train", *SMALL, *runs, "name=two", "--resume"]
    with open(tmp_path / "printed.txt", "w") as stream:
        launched = subprocess.Popen([*torchrun, *command], stdout=stream, stderr=stream)
        wait_for_lines(folder, 3)
        killed = read_state(folder).process
        os.kill(killed, signal.SIGKILL)  # torchrun ends the other, and starts both again
        status = launched.wait(300)
    printed = (tmp_path / "printed.txt").read_text()
    assert status == 0, printed
    assert "32 (micro-batch) x 2 (replicas of 2 processes)" in printed
    assert (printed.count("resumed after"), printed.count("last epoch:")) == (1, 1)
    assert read_state(folder).process != killed
    assert load_checkpoint(folder / "last.pt").state.progress.step == 22
    assert_same(tmp_path / "one", folder)
    one, two = (load_checkpoint(tmp_path / name / "last.pt").config for name in ("one", "two"))
    assert one == two.replace("name: two", "name: one")
    capsys.readouterr()
    assert main(["validate", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "of 360 images" in said
    launched = Launched(2, main, ["validate", str(folder)], folder=tmp_path)
    assert launched.end() == ([0, 0], [said, ""])


def small_run(folder, together, *overrides):
    """Two epochs of three host calls of 32 images, with all that draws random numbers."""
    config = load(
        CONFIG,
        [
            f"runs={folder}",
            "model.width=4",
            "ipu.splits=[]",
            "training.epochs=2",
            "training.checkpoint_every=1",
            "data.augment=crop",
            "training.mixup_alpha=0.2",
            "training.average=exponential",
            *overrides,
        ],
    )
    run = build(config, processes=together)
    run.model.fc = torch.nn.Sequential(torch.nn.Dropout(0.3), run.model.fc)
    data = dataclasses.replace(
        run.data,
        train=Subset(run.data.train, range(100)),
        validation=Subset(run.data.validation, range(31)),
    )
    arithmetic = dataclasses.replace(run.arithmetic, images=100)
    return dataclasses.replace(run, data=data, arithmetic=arithmetic)


def go_on(folder, stop_after=None, *overrides):
    """Train with all processes there are, or go on; leave after ``stop_after`` steps."""
    together = connect()
    run = small_run(folder, together, *overrides)
    directory = RunDirectory(folder / "quickstart", writes=False)
    if together.first:
        directory = RunDirectory.reopen(run.config)
    last = directory.checkpoint("last")
    start = together.of_first(load_checkpoint(last) if last.exists() else None)
    results = fit(run, directory, start)
    steps = (result for result in results if isinstance(result, StepResult))
    list(itertools.islice(steps, stop_after))
    results.close()
    directory.close()
    together.leave()


def test_a_run_goes_on_in_another_number_of_processes_bit_for_bit(tmp_path):
    overrides = ["model.norm=bn", "training.weights_every=2", "ipu.device_iterations=2"]
    overrides += ["ipu.gradient_accumulation=2", "ipu.precision=16.16"]
    overrides += ["ipu.stochastic_rounding=true"]
    go_on(tmp_path / "whole", None, *overrides)
    for count, stop in ((1, 2), (2, 2), (1, None)):
        statuses, _ = Launched(count, go_on, tmp_path / "parts", stop, *overrides).end()
        assert statuses == [0] * count
    assert_same(tmp_path / "whole" / "quickstart", tmp_path / "parts" / "quickstart")


def test_four_replicas_in_two_processes_are_one_process_but_for_the_order_of_sums(tmp_path):
    overrides = ["ipu.replication_factor=4", "ipu.micro_batch_size=2"]
    go_on(tmp_path / "one", None, *overrides)
    assert Launched(2, go_on, tmp_path / "two", None, *overrides).end()[0] == [0, 0]
    one, two = (load_checkpoint(tmp_path / n / "quickstart" / "last.pt") for n in ("one", "two"))
    for name, tensor in one.weights.items():
        torch.testing.assert_close(tensor, two.weights[name], rtol=0, atol=1e-6, msg=name)
    assert torch.equal(one.state.streams, two.state.streams)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_one_process_stops_all_with_one_checkpoint(
    tmp_path, train_until, number, status
):
    signal_to_second = (train_until, 1, signalled(number))
    launched = Launched(2, *signal_to_second, f"runs={tmp_path}", folder=tmp_path)
    statuses, printed = launched.end()
    assert statuses == [status, status]
    assert "interrupted after epoch 0, host call" in printed[0].splitlines()[-1]
    assert printed[1] == ""
    step = load_checkpoint(tmp_path / "quickstart" / "last.pt").state.progress.step
    assert step == len(lines(tmp_path / "quickstart")) >= 2


def test_a_killed_process_ends_the_others_in_one_sentence(tmp_path, train_until):
    arguments = [f"runs={tmp_path}", "training.checkpoint_every=1"]
    killed = (train_until, 1, signalled(signal.SIGKILL))
    launched = Launched(2, *killed, *arguments, folder=tmp_path)
    statuses, printed = launched.end()
    assert statuses == [2, -signal.SIGKILL]
    said = printed[0].splitlines()[-1]
    assert said.startswith("ipu-proxynorm: error: process 1 of 2 of the run has ended")
    assert said.endswith("start all processes again with --resume")
    assert load_checkpoint(tmp_path / "quickstart" / "last.pt").state.progress.step >= 1


def test_the_first_process_killed_is_named_by_the_second(tmp_path, train_until):
    arguments = [f"runs={tmp_path}", "training.checkpoint_every=1"]
    killed = (train_until, 0, signalled(signal.SIGKILL))
    launched = Launched(2, *killed, *arguments, folder=tmp_path)
    statuses, printed = launched.end()
    assert statuses == [-signal.SIGKILL, 2]
    assert "error: process 0 of 2 of the run has ended" in printed[1].splitlines()[-1]


def test_a_stopped_process_is_named_after_the_patience_and_outlives_nobody(tmp_path, train_until):
    arguments = [f"runs={tmp_path}", "training.checkpoint_every=1", "training.patience=6"]
    stopped = (train_until, 1, signalled(signal.SIGSTOP))
    launched = Launched(2, *stopped, *arguments, folder=tmp_path)
    launched.children[0].join(60)
    os.kill(launched.children[1].pid, signal.SIGCONT)
    statuses, printed = launched.end()
    assert statuses == [2, 2]
    said = printed[0].splitlines()[-1]
    assert "error: process 1 of 2 of the run has not answered for long (training.patience)" in said
    assert said.endswith("start all processes again with --resume")


def train_apart(*arguments):
    """Train, where arguments that begin with a number are that process's alone."""
    own = [word.split(":", 1) if word[1] == ":" else ["", word] for word in arguments]
    return train(*(word for number, word in own if number in ("", os.environ["RANK"])))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["1:optimizer.lr=0.2"], "process 1 of 2: optimizer.lr is 0.2 there and 0.1 in process 0"),
        (["1:seed=7"], "process 1 of 2: seed is 7 there and 0 in process 0"),
        (["0:model.width=8"], "process 1 of 2: model.width is 4 there and 8 in process 0"),
        (["1:training.epochs=2"], "process 1 of 2: training.epochs is 2 there and 1 in process 0"),
        (["0:--resume"], "process 1 of 2: --resume is False there and True in process 0"),
        (["1:--smoke"], "process 1 of 2: --smoke is True there and False in process 0"),
    ],
)
def test_processes_that_differ_are_refused_before_they_train(tmp_path, arguments, words):
    launched = Launched(2, train_apart, f"runs={tmp_path}", *arguments, folder=tmp_path)
    statuses, printed = launched.end()
    assert statuses == [2, 2]
    assert len(printed[0].splitlines()) == 1
    assert words in printed[0]
    assert printed[1] == ""
    assert not (tmp_path / "quickstart").exists()


def test_processes_that_see_other_images_are_refused(tmp_path):
    arguments = ["data.name=image_folder", "data.image_size=16", "ipu.micro_batch_size=4"]
    for number in "01":
        folder = damaged_images(tmp_path / number)
        arguments.append(f"{number}:data.path={folder}")
    (tmp_path / "1" / "train" / "a" / "2.png").rename(tmp_path / "1" / "train" / "a" / "3.png")
    launched = Launched(2, train_apart, f"runs={tmp_path}", *arguments, folder=tmp_path)
    statuses, printed = launched.end()
    assert statuses == [2, 2]
    assert "process 1 of 2: the data set is 16 and 8 images (" in printed[0]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full (Linux)")
def test_a_disk_full_for_the_first_process_stops_all(tmp_path):
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / ".last.pt.part").symlink_to("/dev/full")
    arguments = [f"runs={tmp_path}", "--resume", "training.checkpoint_every=1"]
    statuses, printed = Launched(2, train, *arguments, folder=tmp_path).end()
    assert statuses == [2, 2]
    said = printed[0].splitlines()[-1]
    assert said.startswith("ipu-proxynorm: error: checkpoint ")
    assert "cannot be written (No space left on device)" in said
    assert printed[1] == ""


def test_a_data_worker_lost_by_one_process_stops_all_with_a_checkpoint(tmp_path, train_until):
    def kill_workers():
        for worker in multiprocessing.active_children():
            worker.kill()

    arguments = [f"runs={tmp_path}", "data.workers=1"]
    launched = Launched(2, train_until, 1, kill_workers, *arguments, folder=tmp_path)
    statuses, printed = launched.end()
    assert statuses == [2, 2]
    said = printed[0].splitlines()[-1]
    assert said.startswith(
        "ipu-proxynorm: error: process 1 of 2: data.workers: a worker process died"
    )
    assert "the run stands after epoch" in said
    assert printed[1] == ""
    step = load_checkpoint(tmp_path / "quickstart" / "last.pt").state.progress.step
    assert step == len([line for line in lines(tmp_path / "quickstart") if line["kind"] == "train"])


def test_a_loss_that_is_not_finite_is_explained_once_as_in_one_process(tmp_path, capsys):
    diverging = ["optimizer.lr=1e30", "schedule.warmup_epochs=0", "training.weights_every=1"]
    assert train(f"runs={tmp_path / 'one'}", *diverging) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "error: the loss is" in said
    assert "layer" in said
    launched = Launched(2, train, f"runs={tmp_path}", *diverging, folder=tmp_path)
    statuses, printed = launched.end()
    assert statuses == [2, 2]
    assert printed[0].splitlines()[-1] == said
    assert printed[1] == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["train", *SMALL, "ipu.replication_factor=3"],
            "ipu.replication_factor=3: it counts the replicas of all processes together, and 2 "
            "processes cannot have equally many; set it to a multiple of 2",
        ),
        (["train", *SMALL, "ipu.micro_batch_size=800"], "do not fill one combined batch of 1600"),
        (["train", *SMALL, "runs=/dev/null/runs"], "cannot be written (Not a directory)"),
        (["validate", "/none"], "no config.yaml in it"),
        (["train", "--overwrite"], "CONFIG is missing: expected a YAML file"),
        (["memory", CONFIG], "2 processes were started, but only train and validate run in"),
    ],
)
def test_what_cannot_be_is_one_sentence_of_one_process(tmp_path, arguments, words):
    if arguments[0] == "train" and "runs=/dev/null/runs" not in arguments and CONFIG in arguments:
        arguments = [*arguments, f"runs={tmp_path}"]
    statuses, printed = Launched(2, main, arguments, folder=tmp_path).end()
    assert statuses[0] == 2
    assert len(printed[0].splitlines()) == 1
    assert words in printed[0]
    assert printed[1] == ""


def test_replicas_that_the_launcher_counts_otherwise_are_refused(tmp_path):
    launched = Launched(
        2, train, f"runs={tmp_path}", folder=tmp_path, POPDIST_NUM_LOCAL_REPLICAS="4"
    )
    statuses, printed = launched.end()
    assert statuses == [2, 2]
    assert "the launcher has 8 replicas for all processes together" in printed[0]
    assert "poprun --num-replicas 2" in printed[0]


def damaged_images(folder):
    pixels = torch.randint(0, 256, (24, 16, 16), dtype=torch.uint8).numpy()
    for number, image in enumerate(pixels):
        part = folder / ("val" if number % 3 == 0 else "train") / "ab"[number % 2]
        part.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(part / f"{number}.png")
    for path in sorted((folder / "train").glob("*/*.png"))[::3]:
        path.write_bytes(path.read_bytes()[:60])
    return folder


def test_damaged_images_are_counted_over_all_processes(tmp_path):
    arguments = [
        f"runs={tmp_path / 'runs'}",
        "data.name=image_folder",
        f"data.path={damaged_images(tmp_path / 'images')}",
        "data.image_size=16",
        "ipu.micro_batch_size=4",
        "data.max_corrupt=5",
    ]
    statuses, printed = Launched(2, train, *arguments, folder=tmp_path).end()
    assert statuses == [2, 2]
    assert "data.max_corrupt=5: 6 files are damaged: " in printed[0].splitlines()[-1]
    assert printed[1] == ""


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"MASTER_ADDR": "no.such.machine.invalid"}, "MASTER_ADDR=no.such.machine.invalid"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http: expected a free port"),
        ({"RANK": "5"}, "RANK=5: expected 0 to 1, as there are WORLD_SIZE=2 processes"),
        ({"MASTER_ADDR": None}, "WORLD_SIZE=2: this is one of several processes, but not as"),
        ({"RANK": "1"}, "the 2 processes have not met there (Connection refused|.*refused)"),
    ],
)
def test_a_bad_launch_is_one_sentence(monkeypatch, environment, words):
    monkeypatch.setattr(meeting, "MEETING_SECONDS", 1.0)
    complete = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**complete, "MASTER_PORT": free_port(), **environment}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=words) as error:
        connect()
    assert "\n" not in str(error.value)


def test_one_process_has_nobody_to_ask():
    alone = Processes()
    assert (alone.sum([1.5, 2]), alone.largest(3), alone.gather("a")) == ([1.5, 2], 3, ["a"])
    assert (alone.of_first("b"), alone.union(["d", "c"])) == ("b", ["d", "c"])
    with pytest.raises(KeyError), alone.together():
        raise KeyError
    alone.leave()


def exchange(folder):
    together = connect()
    rank = together.instance.index
    assert together.sum([rank, 0.5]) == [3, 1.5]
    assert together.largest(rank) == 2
    assert together.gather(str(rank)) == ["0", "1", "2"]
    assert together.of_first(rank) == 0
    assert together.union([f"file{rank}", "both"]) == ["both", "file0", "file1", "file2"]
    own = LeftOut("a", Reason(rank + 1))
    assert together.union([own, own]) == [LeftOut("a", Reason(n)) for n in (1, 2, 3)]
    try:
        with together.together():
            if rank:
                raise UserError(f"bad {rank}")
    except UserError as error:
        print(error, error.quiet)
    together.leave()


class Poprun:
    """What the SDK's popdist says, without torchrun's variables in the environment."""

    def __init__(self):
        self.index = int(os.environ.pop("RANK"))
        self.count = int(os.environ.pop("WORLD_SIZE"))
        self.started = False

    def isPopdistEnvSet(self):
        return True

    def getInstanceIndex(self):
        return self.index

    def getNumInstances(self):
        return self.count

    def init(self):
        self.started = True


def exchange_under_poprun(folder):
    del os.environ["MASTER_ADDR"]
    meeting.popdist = distribution.popdist = Poprun()
    exchange(folder)
    assert meeting.popdist.started


def test_processes_of_poprun_meet_on_this_machine(tmp_path):
    statuses, printed = Launched(3, exchange_under_poprun, tmp_path, folder=tmp_path).end()
    assert statuses == [0, 0, 0], printed


def test_what_fails_in_one_process_fails_in_all(tmp_path):
    statuses, printed = Launched(3, exchange, tmp_path, folder=tmp_path).end()
    assert statuses == [0, 0, 0], printed
    said = "process 1 of 3: bad 1"
    assert printed == [f"{said} False\n", f"{said} True\n", f"{said} True\n"]
