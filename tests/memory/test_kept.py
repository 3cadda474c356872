"""What is computed from a capture is computed once, and for that capture alone."""

from __future__ import annotations

import pickle

import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.memory.kept import kept


def test_computed_once_for_a_capture_and_values():
    calls = []

    @kept
    def bytes_at(capture, index, factor=1):
        calls.append((capture.micro_batch, index))
        return factor * capture.tensors[index].bytes

    capture = memory.capture(nn.Sequential(nn.Linear(3, 5)), [torch.zeros(4, 3)])
    other = capture.with_micro_batch(8)
    given = next(t.index for t in capture.tensors if t.role == "input")
    for _ in range(2):
        assert bytes_at(capture, given) == 4 * 3 * 4
        assert bytes_at(other, given) == 8 * 3 * 4
        assert bytes_at(capture, given, 2) == 2 * 4 * 3 * 4
    assert calls == [(4, given), (8, given), (4, given)]


def test_a_changed_capture_keeps_nothing_of_the_first():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    capture = memory.capture(model, [torch.zeros(4, 3)])
    whole = memory.ipu_budgets(capture, memory.Layout(), memory.ensemble()[0])
    cut = capture.with_splits(["2"])
    assert len(whole) == 1
    assert len(memory.ipu_budgets(cut, memory.Layout(), memory.ensemble()[0])) == 2
    assert memory.ipu_budgets(capture, memory.Layout(), memory.ensemble()[0]) == whole


def test_a_capture_with_results_is_pickled_and_checkpoints_may_be_a_list():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    capture = memory.capture(model, [torch.zeros(4, 3)])
    layout = memory.Layout(checkpoints=["1"])
    budgets = memory.ipu_budgets(capture, layout, memory.ensemble()[0])
    again = pickle.loads(pickle.dumps(capture))
    assert again == capture
    assert memory.ipu_budgets(again, layout, memory.ensemble()[0]) == budgets
