"""A program of literal operations, as a Python function."""

from __future__ import annotations

import weakref

import pytest
import torch

from ipu_proxynorm.simulator.trace.tape import (
    Block,
    Branch,
    Loop,
    Operation,
    Origin,
    Slot,
    depends_on,
    to_function,
    uses,
    without_dead_code,
)

pytestmark = pytest.mark.simulator

aten = torch.ops.aten
HERE = Origin("file.py", 1, 0, 0, 0, False)
S = [Slot(number) for number in range(10)]


def call(function, args, outputs, **flags):
    return Operation(function, args, {}, outputs, HERE, **flags)


def test_constants_arguments_and_several_results():
    block = Block(
        [
            call(aten.add.Tensor, [S[0], S[1]], S[2]),
            call(aten.max.dim, [S[2], 0, True], (S[3], None)),
            call(aten.cat.default, [[S[3], S[2]]], S[4]),
        ],
        [S[4]],
    )
    run = to_function(block, [S[0]], {S[1]: torch.tensor([1.0, 5.0])})
    assert run(torch.tensor([2.0, 0.0]))[0].tolist() == [5, 3, 5]


def test_tensors_are_freed_after_their_last_use():
    seen = []

    def spy(tensor):
        seen.append(weakref.ref(tensor))
        return tensor + 1

    def look(tensor):
        return torch.tensor(float(seen[0]() is None)) + tensor * 0

    block = Block(
        [call(spy, [S[0]], S[1]), call(spy, [S[1]], S[2]), call(look, [S[2]], S[3])], [S[3]]
    )
    run = to_function(block, [S[0]], {})
    seen.clear()
    assert run(torch.zeros(1))[0].item() == 0.0  # the caller holds the input
    freed = Block(
        [
            call(aten.add.Tensor, [S[0], 1], S[1]),
            call(spy, [S[1]], S[2]),
            call(look, [S[2]], S[3]),
        ],
        [S[3]],
    )
    seen.clear()
    assert to_function(freed, [S[0]], {})(torch.zeros(1))[0].item() == 1.0


def test_branches_and_loops():
    then = Block([call(aten.add.Tensor, [S[0], 1], S[3])], [S[3]])
    otherwise = Block([call(aten.mul.Tensor, [S[0], 10], S[4])], [S[4]])
    body = Block([call(aten.add.Tensor, [S[5], S[0]], S[6])], [S[6]])
    block = Block(
        [
            Branch(S[1], then, otherwise, [S[2]], HERE),
            Loop(3, body, [S[2]], [S[5]], HERE),
        ],
        [S[5]],
    )
    run = to_function(block, [S[0], S[1]], {})
    assert run(torch.tensor(2.0), torch.tensor(True))[0].item() == 3 + 3 * 2
    assert run(torch.tensor(2.0), torch.tensor(False))[0].item() == 20 + 3 * 2
    assert uses(block.operations[0]) == {S[0], S[1]}
    assert uses(block.operations[1]) == {S[0], S[2]}


def test_dead_code_goes_and_effects_stay():
    needed = call(aten.sin.default, [S[0]], S[1])
    dead = call(aten.cos.default, [S[0]], S[2])
    effect = call(aten.add_.Tensor, [S[0], 1], None, keeps=True)
    block = without_dead_code(Block([dead, needed, effect], [S[1]]))
    assert block.operations == [needed, effect]


def test_dependence_through_writes():
    block = Block(
        [
            call(aten.sin.default, [S[0]], S[1]),
            call(aten.add_.Tensor, [S[2], S[1]], None, keeps=True),
            call(aten.cos.default, [S[2]], S[3]),
        ]
    )
    assert depends_on(block, {S[0]}, {S[3]})
    assert not depends_on(block, {S[3]}, {S[0]})
