"""Each rewrite of a program by itself: what becomes of a few operators, and what must stay."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.norm import create_norm_act
from ipu_proxynorm.simulator.trace.consistency import Traced
from ipu_proxynorm.simulator.trace.optimize import passes
from ipu_proxynorm.simulator.trace.optimize.duplicates import without_duplicates
from ipu_proxynorm.simulator.trace.optimize.graph import Graph
from ipu_proxynorm.simulator.trace.optimize.in_place import in_place
from ipu_proxynorm.simulator.trace.optimize.once import parted
from ipu_proxynorm.simulator.trace.optimize.roundings import without_idle_roundings
from ipu_proxynorm.simulator.trace.optimize.selects import vectorised_selects
from ipu_proxynorm.simulator.trace.origins import Origin
from ipu_proxynorm.simulator.trace.tape import Block, Operation, Slot, to_function
from ipu_proxynorm.simulator.trace.tape import without_dead_code as alive

pytestmark = pytest.mark.simulator

aten = torch.ops.aten
HERE = Origin("file.py", 1, 0, 0, 0, False)
X, B, G = Slot(0), Slot(1), Slot(2)
SHAPE = (4, 3, 32, 32)


class Tape:
    """Builds a block by calling operators on real tensors, which gives each its shape and type."""

    def __init__(self, *arguments):
        self.arguments = [Slot(number) for number in range(len(arguments))]
        self.values = dict(zip(self.arguments, arguments))
        self.block = Block()

    def __call__(self, function, *args, keeps=False, **kwargs):
        real = [self.values[a] if isinstance(a, Slot) else a for a in args]
        with torch.no_grad():
            value = function(*real, **kwargs)
        slot = Slot(len(self.values))
        self.values[slot] = value.clone() if not keeps else value
        made = {slot: Traced.of(value)}
        reads = {a: Traced.of(self.values[a]) for a in args if isinstance(a, Slot)}
        self.block.operations.append(
            Operation(
                function, list(args), kwargs, slot, HERE, keeps=keeps, reads=reads, makes=made
            )
        )
        return slot

    def same(self, block, *arguments):
        """Tell whether a block computes what the recorded one does, bit for bit."""
        expected = to_function(self.block, self.arguments, {})(*map(torch.clone, arguments))
        given = to_function(block, self.arguments, {})(*map(torch.clone, arguments))
        return all(map(equal, given, expected))

    def names(self, block):
        return [step.name for step in block.operations]


def equal(one, other):
    return one.dtype == other.dtype and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def arguments():
    """Return activations, bounds and gradients with everything that a float can be."""
    torch.manual_seed(0)
    x, g = torch.randn(SHAPE), torch.randn(SHAPE)
    b = torch.randn(1, 3, 1, 1)
    x[0, :, 0, 0] = b.flatten()  # ties
    x[0, 0, 1, :4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    g[0, 0, 0, :3] = g[1, 1, 0, :3] = torch.tensor([torch.inf, -torch.inf, torch.nan])
    return x, b, g


def clamp(compare, x, b, g):
    tape = Tape(x, b, g)
    condition = tape(compare, X, B)
    clamped = tape(aten.where.self, condition, B, X)
    zero = tape(aten.scalar_tensor.default, 0.0, dtype=torch.float32)
    inner = tape(aten.where.self, condition, zero, G)
    outer = tape(aten.where.self, condition, G, zero)
    tape.block.results = [clamped, inner, outer]
    return tape


@pytest.mark.parametrize("compare", ["le", "lt", "ge", "gt"])
@pytest.mark.parametrize("bound", [0.5, torch.nan, torch.inf, -torch.inf])
def test_a_select_by_a_comparison_and_its_gradients_become_clamp_and_masks(compare, bound):
    x, b, g = arguments()
    b[0, 1] = bound
    tape = clamp(getattr(aten, compare).Tensor, x, b, g)
    block = passes.rewritten(tape.block, tape.arguments)
    names = tape.names(block)
    assert "where" not in names
    assert {f"{compare}_as_float", "hardtanh_backward", "threshold_backward"} < set(names)
    assert tape.same(block, x, b, g)


def test_selects_stay_where_the_condition_is_used_otherwise():
    x, b, g = arguments()
    tape = clamp(aten.le.Tensor, x, b, g)
    tape.block.results.append(tape.block.operations[0].outputs)
    block = vectorised_selects(tape.block, tape.arguments, iter(map(Slot, range(99, 120))).__next__)
    assert tape.names(block) == tape.names(tape.block)
    same_size = clamp(aten.le.Tensor, x, torch.randn(SHAPE), g)
    assert "where" in tape.names(passes.rewritten(same_size.block, same_size.arguments))


def test_a_number_that_the_program_changes_is_no_zero():
    x, b, g = arguments()
    tape = Tape(x, b, g)
    condition = tape(aten.le.Tensor, X, B)
    zero = tape(aten.scalar_tensor.default, 0.0, dtype=torch.float32)
    tape(aten.add_.Tensor, zero, 1.0, keeps=True)
    tape.block.results = [tape(aten.where.self, condition, zero, G)]
    assert "where" in tape.names(passes.rewritten(tape.block, tape.arguments))


def test_copies_and_repetitions_leave():
    x, b, g = arguments()
    tape = Tape(x, b, g)
    one, two = tape(aten.exp.default, X), tape(aten.exp.default, X)
    copied = tape(aten.clone.default, one)
    neutral = tape(aten.mul.Tensor, copied, 1.0)
    tape.block.results = [tape(aten.add.Tensor, neutral, two)]
    block = alive(without_duplicates(tape.block, tape.arguments))
    assert tape.names(block) == ["exp", "add"]
    assert tape.same(block, x, b, g)


def test_a_copy_of_what_is_written_to_stays():
    x, b, g = arguments()
    tape = Tape(x, b, g)
    one = tape(aten.exp.default, X)
    before = tape(aten.clone.default, one)
    tape(aten.add_.Tensor, one, 1.0, keeps=True)
    again = tape(aten.exp.default, X)
    tape.block.results = [tape(aten.sub.Tensor, one, before), again]
    block = without_duplicates(tape.block, tape.arguments)
    assert tape.names(block) == tape.names(tape.block)


def test_elementwise_operators_write_over_what_nothing_else_reads():
    x, b, g = arguments()
    tape = Tape(x, b, g)
    one = tape(aten.exp.default, X)
    two = tape(aten.relu.default, one)
    three = tape(aten.mul.Tensor, G, two)
    tape.block.results = [tape(aten.silu_backward.default, three, X)]
    block = in_place(tape.block, tape.arguments)
    names = [f"{step.name}.{step.function._schema.overload_name}" for step in block.operations]
    assert names == ["exp.", "relu_.", "mul_.Tensor", "silu_backward.grad_input"]
    assert tape.same(block, x, b, g)


def test_nothing_is_written_over_that_somebody_else_sees():
    x, b, g = arguments()
    tape = Tape(x, b, g)
    own = tape(aten.exp.default, X)
    view = tape(aten.view.default, own, [-1])
    kept = tape(aten.neg.default, own)  # a view of it is read later
    squared = tape(aten.mul.Tensor, kept, kept)
    small = tape(aten.sum.dim_IntList, X, [0])
    wider = tape(aten.add.Tensor, small, X)  # the shape of another
    argument = tape(aten.neg.default, X)
    result = tape(aten.neg.default, argument)
    tape.block.results = [view, squared, wider, argument, result]
    block = in_place(tape.block, tape.arguments)
    assert tape.names(block) == tape.names(tape.block)


def test_what_depends_on_parameters_alone_is_parted():
    x, b, g = arguments()
    tape = Tape(x, b, g)
    scale = tape(aten.exp.default, B)
    ones = tape(aten.ones.default, [1, 3, 1, 1])
    shifted = tape(aten.add.Tensor, scale, ones)
    drawn = tape(aten.rand_like.default, B)
    tape.block.operations[-1] = replace(tape.block.operations[-1], random=True)
    scaled = tape(aten.mul.Tensor, X, shifted)
    returned = tape(aten.neg.default, B)
    tape.block.results = [scaled, drawn, returned]
    first, rest = parted(tape.block, [B], tape.arguments)
    assert tape.names(first) == ["exp", "ones", "add"]
    assert first.results == [shifted]
    assert tape.names(rest) == ["rand_like", "mul", "neg"]


def test_views_share_and_what_is_written_counts_for_all():
    tape = Tape(*arguments())
    view = tape(aten.view.default, X, [-1])
    own = tape(aten.exp.default, X)
    tape(aten.add_.Tensor, view, 1.0, keeps=True)
    graph = Graph(tape.block, tape.arguments)
    assert view in graph.sharing(X)
    assert [graph.is_held(slot) for slot in (view, own)] == [True, False]
    assert [graph.is_written(slot) for slot in (X, own)] == [True, False]
    assert [graph.owns_memory(slot) for slot in (own, view)] == [True, False]


def popart_clamp(compare, x, b, g):
    """Return a clamp with its gradients as PopART has them: products with the condition."""
    tape = Tape(x, b, g)
    condition = tape(compare, X, B)
    clamped = tape(aten.where.self, condition, B, X)
    opposite = tape(aten.logical_not.default, condition)
    inner = tape(aten.mul.Tensor, tape(aten._to_copy.default, opposite, dtype=torch.float32), G)
    outer = tape(aten.mul.Tensor, G, tape(aten._to_copy.default, condition, dtype=torch.float32))
    total = tape(aten.sum.dim_IntList, outer, [0, 2, 3], True)
    tape.block.results = [clamped, inner, outer, total]
    return tape


@pytest.mark.parametrize("compare", ["le", "lt", "ge", "gt"])
@pytest.mark.parametrize("bound", [0.5, torch.nan, torch.inf])
def test_gradients_as_products_with_the_condition_become_products_with_a_mask(compare, bound):
    x, b, g = arguments()
    b[0, 1] = bound
    tape = popart_clamp(getattr(aten, compare).Tensor, x, b, g)
    block = passes.rewritten(tape.block, tape.arguments)
    assert not {"where", "logical_not", "_to_copy", compare} & set(tape.names(block))
    assert tape.same(block, x, b, g)


def test_a_condition_that_is_returned_as_a_number_stays():
    x, b, g = arguments()
    tape = popart_clamp(aten.lt.Tensor, x, b, g)
    number = next(s for s in tape.block.operations[::-1] if s.name == "_to_copy").outputs
    tape.block.results.append(number)
    block = passes.rewritten(tape.block, tape.arguments)
    assert "where" in tape.names(block)
    assert tape.same(block, x, b, g)


def test_a_conditions_opposite_that_is_returned_stays():
    x, b, g = arguments()
    tape = popart_clamp(aten.lt.Tensor, x, b, g)
    opposite = next(s for s in tape.block.operations if s.name == "logical_not").outputs
    tape.block.results.append(opposite)
    assert tape.same(passes.rewritten(tape.block, tape.arguments), x, b, g)


def test_a_mask_may_be_what_is_compared():
    x, b, g = arguments()
    tape = Tape(x, b, g)
    number = tape(aten._to_copy.default, tape(aten.lt.Tensor, X, B), dtype=torch.float32)
    condition = tape(aten.ge.Tensor, number, B)
    clamped = tape(aten.where.self, condition, B, number)
    inner = tape(aten.mul.Tensor, tape(aten._to_copy.default, condition, dtype=torch.float32), G)
    tape.block.results = [clamped, inner]
    block = passes.rewritten(tape.block, tape.arguments)
    assert tape.names(block).count("lt_as_float") == 1
    assert tape.same(block, x, b, g)


def test_signs_and_numbers_act_on_few():
    x, b, g = arguments()
    tape = Tape(x, b, g)
    total = tape(aten.sum.dim_IntList, tape(aten.neg.default, X), [0, 2, 3], True)
    spread = tape(aten.div.Scalar, tape(aten.expand.default, B, list(SHAPE)), 9)
    viewed = tape(aten.div.Scalar, tape(aten.expand.default, B, list(SHAPE)), 7)
    tape.block.results = [
        total,
        tape(aten.add.Tensor, G, spread),
        tape(aten.view.default, viewed, [-1]),
    ]
    block = passes.rewritten(tape.block, tape.arguments)
    assert tape.names(block) == ["sum", "neg", "expand", "div", "expand", "div", "add", "view"]
    assert tape.same(block, x, b, g)


def test_roundings_of_what_float16_has_leave():
    x, b, g = (tensor.half() for tensor in arguments())
    tape = Tape(x, b, g)

    def cast(slot, dtype):
        return tape(aten._to_copy.default, slot, dtype=dtype)

    def rounded(slot):
        return cast(cast(slot, torch.float16), torch.float32)

    y, bound, gradient = (cast(slot, torch.float32) for slot in (X, B, G))
    condition = tape(aten.lt.Tensor, y, bound)
    clamped = rounded(tape(aten.where.self, condition, bound, y))
    factor = cast(cast(condition, torch.float16), torch.float32)
    inner = rounded(tape(aten.mul.Tensor, gradient, factor))
    padded = rounded(tape(aten.constant_pad_nd.default, inner, [1, 1], 0.1))
    scaled = rounded(tape(aten.mul.Tensor, inner, bound))
    tape.block.results = [cast(clamped, torch.float16), scaled, padded]
    block = alive(without_idle_roundings(tape.block, tape.arguments))
    names = tape.names(block)
    # Those of the arguments, of a result, of the condition, and of what is rounded: 0.1, products.
    assert names.count("_to_copy") == 3 + 1 + 1 + 2 * 2
    assert tape.same(block, x, b, g)
    assert tape.same(passes.rewritten(tape.block, tape.arguments), x, b, g)


def test_no_select_is_left_in_a_network_with_proxy_norm():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), create_norm_act("gn2+pn", 8, "relu"))
    loss = torch.nn.Sequential(model, torch.nn.Flatten(), Loss())
    executor = poptorch.trainingModel(
        loss, poptorch.Options(), torch.optim.SGD(loss.parameters(), 0.1)
    )
    executor.compile(torch.randn(2, 3, 34, 34))
    steps = executor._device.program.executable.block.operations
    large = [step for step in steps if any(len(made.shape) == 4 for made in step.makes.values())]
    assert not {"where", "logical_not", "lt", "le"} & {step.name for step in large}


class Loss(torch.nn.Module):
    def forward(self, x):
        return poptorch.identity_loss(x.square().mean(), "none")
