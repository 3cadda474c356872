"""Advice for programs that are cut already, by splits or by blocks of any name, with labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.ipu import Classification
from ipu_proxynorm.models import create_model

LAYOUT = memory.Layout(optimizer=memory.optimizer_memory("sgd"), gradient_accumulation=8)
INPUTS = [torch.zeros(64, 3, 32, 32, dtype=torch.uint8), torch.zeros(64, dtype=torch.long)]


def program(norm="gn4+pn", activations=torch.float16):
    """Return a network with its loss: labels are read at the end, a proxy's moments all over."""
    model = create_model("resnetv2_14", norm=norm)
    return Classification(model, (0.5,) * 3, (0.25,) * 3, activations=activations)


@pytest.fixture(scope="module")
def whole():
    return memory.capture(program(), INPUTS, precision="16.16")


def test_labels_and_a_proxys_moments_forbid_no_boundary(whole):
    found = {b.layer: b for b in memory.boundaries(whole)}
    blocks = [f"model.layer{group}.{block}" for group in (1, 2, 3) for block in (0, 1)]
    assert set(blocks) < set(found)
    assert found["model.layer2.0"].before == "model.layer1"
    assert found["model.layer2.0"].bytes == 64 * 16 * 32 * 32 * 2


def texts(capture, layout=LAYOUT):
    return " | ".join(advice.text for advice in memory.advise(capture, layout, count=9))


def test_every_kind_of_change_is_tried(whole):
    one = texts(whole.with_micro_batch(1024))
    for words in ("micro-batch ", "instead of 1024", "recomputation from ", "optimiser state in",
                  "2 IPUs a replica, another stage from model.layer", "memory proportion 0.1",
                  "float16 partial sums"):  # fmt: skip
        assert words in one
    two = texts(whole.with_splits(["model.layer3.0"]).with_micro_batch(1024))
    for words in ("4 IPUs a replica, other stages from model.", "a recomputation checkpoint at ",
                  "stage 1 from model.", "instead of model.layer3.0"):  # fmt: skip
        assert words in two
    assert "precision 16.32 instead of 32.32" in texts(
        whole, dataclasses.replace(LAYOUT, precision="32.32")
    )


def test_more_stages_come_in_powers_of_two_with_the_micro_batches_that_they_need(whole):
    layout = dataclasses.replace(
        LAYOUT, gradient_accumulation=3, available_memory_proportion=(0.6, 0.3)
    )
    cut = whole.with_splits(["model.layer2.0"])
    (advice,) = [a for a in memory.advise(cut, layout, count=9) if "IPUs a replica" in a.text]
    assert advice.text.startswith("4 IPUs a replica, other stages from ")
    assert advice.text.endswith(", gradient accumulation 7")
    assert len(advice.splits) == 3
    assert "model.layer2.0" in advice.splits
    # Each IPU keeps the proportion of the one that it was cut from.
    cut_from = ("model.layer2", "model.layer3", "model.norm")
    expected = [0.6, *(0.3 if layer.startswith(cut_from) else 0.6 for layer in advice.splits)]
    assert list(advice.layout.available_memory_proportion) == expected


def test_blocks_of_any_name_are_cut_further():
    model = program()
    poptorch.BeginBlock(model.model.layer2[0], "the second", ipu_id=1)
    captured = memory.capture(model, INPUTS, precision="16.16")
    assert captured.stage_names == ("the second",)
    assert captured.split_layers() == ("model.layer2",)
    found = memory.advise(captured, LAYOUT, count=9)
    (more,) = [advice for advice in found if "IPUs a replica" in advice.text]
    assert "model.layer2" in more.splits
    for advice in found:
        after = captured.with_splits(advice.splits) if advice.splits else captured
        changed = after.with_micro_batch(advice.micro_batch)
        verdict = memory.predict_capture(changed, advice.layout).verdict
        assert verdict.utilisation == advice.utilisation


class _Within(nn.Module):
    """A block that begins between two operators of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        with poptorch.Block("a", ipu_id=0):
            x = self.first(x)
        with poptorch.Block("b", ipu_id=1):
            return self.second(x * 2.0)


def test_blocks_that_begin_within_a_layer_are_left_as_they_are():
    captured = memory.capture(_Within(), [torch.zeros(32, 64)])
    assert captured.split_layers() is None
    for advice in memory.advise(captured, LAYOUT, count=9):
        assert advice.splits is None


def test_half_precision_is_what_a_trace_in_it_says():
    full = memory.capture(program("gn4", torch.float32), INPUTS, precision="32.32")
    half = memory.capture(program("gn4"), INPUTS, precision="16.32")
    layout = dataclasses.replace(LAYOUT, precision="16.32")
    guessed, traced = (memory.predict_capture(c, layout) for c in (full.in_half_precision(), half))
    assert guessed.verdict.utilisation == pytest.approx(traced.verdict.utilisation, rel=0.02)
    assert guessed.replica_bytes < 0.8 * memory.predict_capture(full, layout).replica_bytes
