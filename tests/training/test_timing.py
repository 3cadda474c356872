"""Host calls are timed one by one, on images or on the device's own numbers."""

import itertools

import pytest
import torch

from ipu_proxynorm.config import load
from ipu_proxynorm.run.run import build
from ipu_proxynorm.training import timing

SMALL = ["ipu.micro_batch_size=2", "ipu.gradient_accumulation=3", "ipu.device_iterations=2"]


class Clock:
    """A clock, and an executor that takes 5 s to compile, 7 s for its first call, 2 s for others.

    Reading the inputs of a call takes a quarter of a second.
    """

    def __init__(self):
        self.now, self.calls = 100.0, 0

    def __call__(self):
        return self.now

    def batches(self):
        for number in itertools.count():
            self.now += 0.25
            yield [torch.tensor(number)]

    def compile(self, inputs):
        assert int(inputs) == 0
        self.now += 5.0

    def executor(self, inputs):
        assert int(inputs) == self.calls
        self.now += 2.0 if self.calls else 7.0
        self.calls += 1


def test_compilation_first_call_and_waits_are_kept_apart(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", clock)

    class Executor:
        compile, detach = staticmethod(clock.compile), staticmethod(lambda: None)

        def __call__(self, inputs):
            clock.executor(inputs)

    compilation, calls, waits = timing._time(Executor(), clock.batches(), 4)
    assert compilation == 5.0
    assert calls == [2.0] * 4
    assert waits == [0.25] * 4


def test_a_run_is_timed_on_its_images_beyond_the_end_of_an_epoch(tmp_path):
    overrides = [*SMALL, "ipu.micro_batch_size=200", "training.mixup_alpha=0.2", f"runs={tmp_path}"]
    config = load("configs/quickstart.yaml", [*overrides, "ipu.device_iterations=1"])
    found = timing.time_on_images(config, 2)  # 1,437 images: one host call of 1,200 an epoch
    assert found.arithmetic.combined_batch == 1200
    assert found.data == "digits"
    assert len(found.calls) == len(found.waits) == 2
    assert min(found.calls) > 0
    assert found.images_per_second == pytest.approx(1200 / (sum(found.calls) / 2))
    assert not list(tmp_path.iterdir())


def test_on_the_device_no_image_need_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (
        "name: away\nmodel: {name: resnet8, norm: gn4+pn}\n"
        "data: {name: cifar10, path: nowhere, image_size: 16}\n"
        "ipu: {micro_batch_size: 2, gradient_accumulation: 2, device_iterations: 2}\n"
        "training: {epochs: 1, mixup_alpha: 0.2, cutmix_lambda_low: 0.5}\n"
    )
    (tmp_path / "away.yaml").write_text(text)
    found = timing.time_on_device(load("away.yaml"), 3)
    assert found.arithmetic.combined_batch == 8
    assert len(found.calls) == 3
    assert found.waits == []
    assert [path.name for path in tmp_path.iterdir()] == ["away.yaml"]


@pytest.mark.parametrize("time_run", [timing.time_on_images, timing.time_on_device])
def test_what_is_frozen_is_frozen_in_what_is_timed(time_run, monkeypatch):
    seen = []

    def look(executor, batches, calls):
        timed = executor.executor.model
        network = getattr(timed, "program", timed).model
        seen.extend([network.layer1.training, network.fc.training])
        return 0.0, [1.0], [1.0]

    monkeypatch.setattr(timing, "_time", look)
    time_run(load("configs/quickstart.yaml", ["training.trainable=[norm, fc]"]), 1)
    assert seen == [False, True]


def test_random_labels_are_brought_to_classes():
    run = build(load("configs/quickstart.yaml"))
    program = run.program.eval()
    images = torch.randint(0, 256, (6, 1, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([-3, 0, 4, 9, 10, 2_000_000])
    wrapped = timing.OnDevice(program, 10)(images, labels)
    expected = program(images, torch.tensor([0, 0, 4, 9, 9, 9]))
    assert torch.equal(wrapped[0], expected[0])
    assert torch.equal(wrapped[1], expected[1])
