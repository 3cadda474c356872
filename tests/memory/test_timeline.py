"""Memory over the schedule's time: it peaks at what the budget says, and drains."""

import dataclasses

import pytest
import torch

from ipu_proxynorm.ipu import Classification
from ipu_proxynorm.memory import Layout, capture, optimizer_memory, predict_capture
from ipu_proxynorm.memory.largest import largest_layers, largest_tensors
from ipu_proxynorm.memory.table import aligned, describe, rows
from ipu_proxynorm.memory.timeline import passes_of, steps_of, timelines
from ipu_proxynorm.models import create_model


@pytest.fixture(scope="module")
def prediction():
    model = create_model("resnetv2_14", norm="gn4")
    half = torch.float16
    program = Classification(model, (0.5,) * 3, (0.25,) * 3, activations=half)
    inputs = [torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.zeros(64, dtype=torch.long)]
    captured = capture(program, inputs, precision="16.16")
    layout = Layout(optimizer=optimizer_memory("sgd"), gradient_accumulation=8)
    return predict_capture(captured.with_splits(["model.layer1.1", "model.layer2.0"]), layout)


def test_micro_batches_in_flight():
    """Three stages: the first holds at most five micro-batches, the last one."""
    flying = [[passes_of(step, stage, 3, 8)[2] for step in range(12)] for stage in range(3)]
    assert flying[0] == [1, 2, 3, 4, 5, 5, 5, 5, 4, 3, 2, 1]
    assert max(flying[1]) == 3
    assert max(flying[2]) == 1
    forward, backward, _ = zip(*(passes_of(step, 1, 3, 8) for step in range(12)))
    assert sum(forward) == sum(backward) == 8
    assert forward.index(True) == 1
    assert backward.index(True) == 3


def test_one_micro_batch_after_the_other():
    """Sequentially: three stages take five steps a micro-batch, and keep one at most."""
    assert steps_of(3, 2, "sequential") == 10
    runs = [[passes_of(step, stage, 3, 2, "sequential") for step in range(10)] for stage in (0, 2)]
    assert [in_flight for _, _, in_flight in runs[0]] == [1] * 10
    assert [at for at, (forward, _, _) in enumerate(runs[0]) if forward] == [0, 5]
    assert [at for at, (_, backward, _) in enumerate(runs[0]) if backward] == [4, 9]
    assert [at for at, (forward, backward, _) in enumerate(runs[1]) if forward and backward] == [
        2, 7
    ]  # fmt: skip


def test_sharded_stages_keep_what_they_saved_while_others_work(prediction):
    layout = dataclasses.replace(prediction.layout, schedule="sequential", recomputation="none")
    first, *_ = timelines(predict_capture(prediction.capture, layout))
    at = dict(zip(first.times, first.bytes))
    assert at[2.0] > 1.5 * first.bytes[-1]  # the last stage works
    assert at[15.0] == first.bytes[-1]  # three micro-batches of five steps are over


@pytest.mark.parametrize("schedule", ["pipelined", "grouped", "sequential"])
def test_each_ipu_peaks_at_its_budget_and_drains(prediction, schedule):
    prediction = predict_capture(
        prediction.capture, dataclasses.replace(prediction.layout, schedule=schedule)
    )
    lines = timelines(prediction)
    assert len(lines) == 3
    for line, budget in zip(lines, prediction.ipus):
        assert max(line.bytes) == pytest.approx(budget.used, rel=1e-6)
        working = ("stash", "activations", "temporaries")
        assert line.bytes[-1] == pytest.approx(
            budget.used - sum(budget.terms[term] for term in working), rel=1e-6
        )
        assert list(line.times) == sorted(line.times)


def test_the_largest_tensors_and_layers(prediction):
    tensors = largest_tensors(prediction.capture, 5)
    # 64 images of 16 channels at 32 x 32 in float16; the stem's convolution is one of them.
    assert {tensor.bytes for tensor in tensors} == {64 * 16 * 32 * 32 * 2}
    assert "model.stem: convolution" in {tensor.name for tensor in tensors}
    layers = largest_layers(prediction.capture)
    assert [layer.bytes for layer in layers] == sorted((x.bytes for x in layers), reverse=True)


def test_the_table_adds_up(prediction):
    table = rows(prediction)
    assert table[0] == ["MiB", "IPU 0", "IPU 1", "IPU 2"]
    assert [row[0] for row in table[-3:]] == ["in use", "capacity", "utilisation"]
    assert len({len(line) for line in aligned(table).splitlines()}) == 1
    assert describe(prediction).startswith("fits: IPU ")
