"""Splitting of inputs, and what returns."""

from __future__ import annotations

import pytest
import torch

from ipu_proxynorm.simulator import CommGroupType, Options, OutputMode, inferenceModel
from ipu_proxynorm.simulator.device.batching import BatchLayout, OutputCollector, Position

pytestmark = pytest.mark.simulator


def test_layout_is_row_major():
    layout = BatchLayout(2, 3, 2, 1, True)
    batch = torch.arange(24).reshape(24, 1)
    expected = iter(range(0, 24, 2))
    for iteration in range(2):
        for step in range(3):
            for replica in range(2):
                part = layout.micro_batch(batch, Position(iteration, step, replica))
                start = next(expected)
                assert part.flatten().tolist() == [start, start + 1]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(CommGroupType.Consecutive, [1, 1, 2, 2]), (CommGroupType.Orthogonal, [1, 2, 1, 2])],
)
def test_replicas_of_an_input_group_share_their_micro_batch(kind, expected):
    options = Options().replicationFactor(4).inputReplicaGrouping(2, kind)
    assert inferenceModel(lambda x: x * 1, options)(torch.tensor([1, 2])).tolist() == expected


def test_a_batch_that_does_not_split_is_refused():
    options = Options().deviceIterations(3)
    with pytest.raises(AssertionError, match=r"Invalid batch dimension.*dimension \(4\)"):
        inferenceModel(lambda x: x, options)(torch.ones(4))


def test_numbers_become_vectors_when_several_return():
    options = Options().deviceIterations(3)
    assert inferenceModel(lambda x: x.sum(), options)(torch.arange(6.0)).tolist() == [1, 5, 9]
    assert inferenceModel(lambda x: x.sum())(torch.arange(6.0)).shape == ()


@pytest.mark.parametrize(
    ("mode", "period", "kept"),
    [
        (OutputMode.All, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
        (OutputMode.EveryN, 2, [2, 3, 6, 7]),
        (OutputMode.Final, 1, [7]),
    ],
)
def test_modes_with_gradient_accumulation(mode, period, kept):
    layout = BatchLayout(4, 2, 1, 1, True)
    collector = OutputCollector(layout, mode, period)
    number = 0
    for iteration in range(4):
        for step in range(2):
            position = Position(iteration, step, 0)
            if collector.wants(position):
                collector.add(position, torch.tensor([number]))
            number += 1
    assert collector.result().tolist() == kept
