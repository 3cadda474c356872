"""A program that contradicts its own trace is an error, never torch's crash."""

from __future__ import annotations

import pytest
import torch

from ipu_proxynorm.simulator import CPU, Error, inferenceModel
from ipu_proxynorm.simulator.trace.consistency import Traced, check_program
from ipu_proxynorm.simulator.trace.origins import Origin
from ipu_proxynorm.simulator.trace.recorder import active
from ipu_proxynorm.simulator.trace.tape import Block, Branch, Loop, Operation, Slot

pytestmark = pytest.mark.simulator

aten = torch.ops.aten
HERE = Origin("file.py", 1, 0, 0, 0, False)
A, B, C, D = (Slot(number) for number in range(4))
SHORT, LONG = Traced((2,), torch.float32), Traced((3,), torch.float32)


def call(reads, makes):
    return Operation(aten.relu.default, list(reads), {}, *makes, HERE, reads=reads, makes=makes)


def check(*steps, results=()):
    check_program(Block(list(steps), list(results)), {A: SHORT})


def test_an_operation_gets_what_it_was_traced_with():
    check(call({A: SHORT}, {B: LONG}), call({B: LONG}, {C: SHORT}), results=[C])
    with pytest.raises(Error, match=r"relu of file.py:1 is given float32\[2\] where float32\[3\]"):
        check(call({A: LONG}, {B: LONG}))
    with pytest.raises(Error, match="reads tensor 1, which nothing has made"):
        check(call({B: LONG}, {C: LONG}))
    with pytest.raises(Error, match="the program's end reads tensor 3"):
        check(call({A: SHORT}, {B: LONG}), results=[D])


def test_within_branches_and_loops_too():
    def branch(made):
        bodies = (Block([call({A: SHORT}, {B: m})], [B]) for m in made)
        return Branch(A, *bodies, [C], HERE)

    check(branch([LONG, LONG]), call({C: LONG}, {D: LONG}), results=[D])
    with pytest.raises(Error, match="a branch has"):
        check(branch([LONG, SHORT]))
    check(Loop(2, Block([call({B: SHORT}, {C: SHORT})], [C]), [A], [B], HERE), results=[B])
    with pytest.raises(Error, match="a loop has"):
        check(Loop(2, Block([call({B: SHORT}, {C: LONG})], [C]), [A], [B], HERE))


def test_a_tensor_that_is_taken_for_another_while_tracing():
    def forward(x):
        active()._mark(x[:1], active().slot_of(x))  # what the reuse of an id amounted to
        return x + 1

    with pytest.raises(Error, match="contradicts its trace"):
        inferenceModel(forward)(torch.ones(2))


def test_shapes_changed_in_place_are_followed():
    def forward(x):
        y = x + 1
        y.unsqueeze_(0)
        return y.mul(2)

    assert inferenceModel(forward)(torch.ones(2)).tolist() == [[4, 4]]


def test_a_host_function_returns_the_same_kind_at_each_call():
    sizes = iter([2, 2, 3])
    executor = inferenceModel(CPU(lambda x: torch.ones(next(sizes)), "count"))
    executor(torch.ones(1))
    with pytest.raises(Error, match=r"count returns float32\[3\], but float32\[2\] when"):
        executor(torch.ones(1))
