"""``torch.ops.poptorch``: every operator that PopTorch 3.4 registers, called by its name."""

from __future__ import annotations

import pytest
import torch

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator import schedule
from ipu_proxynorm.simulator.operations.registered import FUNCTIONS, SCHEMAS

pytestmark = pytest.mark.simulator

ops = torch.ops.poptorch
X = torch.tensor([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
INDEX = torch.tensor([1])

# The operator's call, and what must come out in torch's words.
CALLS = {
    "nop": (lambda x: ops.nop(x), lambda x: x),
    "set_matmul_serialization": (
        lambda x: ops.set_matmul_serialization(x @ x.t(), "input_channels", 2, True),
        lambda x: x @ x.t(),
    ),
    "set_available_memory": (lambda x: ops.set_available_memory(x * 2, 0.3), lambda x: x * 2),
    "recomputation_checkpoint": (lambda x: ops.recomputation_checkpoint(x * 2), lambda x: x * 2),
    "set_overlap_for_input": (
        lambda x: ops.set_overlap_for_input(x, "no_overlap") + 1,
        lambda x: x + 1,
    ),
    "set_overlap_for_output": (
        lambda x: ops.set_overlap_for_output(x + 1, "no_overlap"),
        lambda x: x + 1,
    ),
    "identity_loss": (lambda x: ops.identity_loss(x, 1), lambda x: x.mean()),
    "dynamic_slice": (
        lambda x: ops.dynamic_slice(x, 1, INDEX.to("ipu"), 1, 1),
        lambda x: x[:, 1:2],
    ),
    "dynamic_update": (
        lambda x: ops.dynamic_update(x, x[:, :1], 1, INDEX.to("ipu"), 1),
        lambda x: torch.cat([x[:, :1], x[:, :1], x[:, 2:]], 1),
    ),
    "fps": (lambda x: ops.fps(x, [0, 2], 1.0, False), lambda x: torch.tensor([0, 1]).int()),
    "nearest": (
        lambda x: ops.nearest(x, x.flip(0), torch.zeros(2).int(), torch.zeros(2).int()),
        lambda x: torch.tensor([1, 0]).int(),
    ),
    "nearest_batch_list": (
        lambda x: ops.nearest_batch_list(x, x.flip(0), [0, 0], [0, 0]),
        lambda x: torch.tensor([1, 0]).int(),
    ),
    "internal_cast": (lambda x: ops.internal_cast(x, "FLOAT16"), lambda x: x.half()),
}


def scoped(x):
    ops.push_name_scope("scope")
    ops.set_attribute("__outline", "layer", "embedding")
    x = x * 2
    ops.clear_attribute("__outline", "layer")
    ops.pop_name_scope()
    ops.optimizer_group(0, [x])
    return x


def looped(x):
    inputs = [x.clone(), x.clone()]
    ops.start_for_loop(inputs)
    a, b = inputs[0] + 1, inputs[0] * inputs[1]
    one, two = ops.end_for_loop([a, b], inputs, 3)
    return one + two + inputs[0]  # after the loop, what it was before


def branched(x):
    condition = x[0, 0] > 0
    ops.start_if_block(condition)
    then = [x * 2]
    ops.start_else_block(then)
    otherwise = [x * 3]
    return ops.end_if_block(otherwise, condition)[0]


def printed(x):
    return ops.ipu_print_tensor(x, "named", 0, 1000, 3, 80, 4, 0, " ", "[", "]")


@pytest.mark.parametrize("name", CALLS)
def test_operators_of_tensors(name):
    call, expected = CALLS[name]
    out = poptorch.inferenceModel(call)(X)
    torch.testing.assert_close(out, expected(X), atol=0, rtol=0)


def test_scopes_and_attributes_change_nothing_on_the_host_either():
    assert torch.equal(poptorch.inferenceModel(scoped)(X), X * 2)
    assert torch.equal(scoped(X), X * 2)
    assert torch.equal(ops.nop(X), X)


def test_loops_and_branches():
    x, a, b = X, X, X
    for _ in range(3):
        a, b = a + 1, a * b
    torch.testing.assert_close(poptorch.inferenceModel(looped)(x), a + b + x)
    model = poptorch.inferenceModel(branched)
    assert torch.equal(model(X), X * 2)
    assert torch.equal(model(-X), X * -3)
    for wrong in (
        lambda x: ops.end_for_loop([x], [x], 1)[0],
        lambda x: ops.end_if_block([x], x)[0],
        lambda x: (ops.start_else_block([x]), x)[1],
    ):
        with pytest.raises(poptorch.Error, match=r"without start_.* before it \(.*test_registered"):
            poptorch.inferenceModel(wrong)(X)


def test_blocks():
    def forward(x):
        ops.begin_ipu_block(1, -1, 1)
        x = x * 2
        ops.end_ipu_block()
        ops.begin_ipu_block(2, -1, 0)
        return x.sin()

    model = poptorch.inferenceModel(forward, poptorch.Options().deviceIterations(3))
    torch.testing.assert_close(model(torch.cat([X, X, X])), torch.cat([X, X, X]).mul(2).sin())
    places = {o.name: (o.stage, o.ipus) for o in schedule.operators(model)}
    assert places["mul"] == (1, (1,))
    assert places["sin"] == (2, (0,))
    with pytest.raises(poptorch.Error, match="No active Block"):
        poptorch.inferenceModel(lambda x: (ops.end_ipu_block(), x + 1)[1])(X)


def test_multi_convolutions():
    weight = torch.randn(2, 3, 1)

    def forward(x):
        ops.begin_multi_conv()
        x = torch.nn.functional.conv1d(x, weight.to("ipu"))
        ops.end_multi_conv([0.2], [0], 0, 1, 0.5, [1])
        return x

    x = torch.randn(1, 3, 4)
    expected = torch.nn.functional.conv1d(x, weight)
    torch.testing.assert_close(poptorch.inferenceModel(forward)(x), expected)


def test_custom_operations_and_their_attributes():
    def call(x, attributes):
        return ops.custom_operation([x], "Scale", "test", 1, 1, [x], attributes)[0]

    poptorch.registerCustomOp("Scale", "test", lambda x, by=2: x * by)
    try:
        none = f"attr:{hex(id(None))}"
        assert torch.equal(poptorch.inferenceModel(lambda x: call(x, none))(X), X * 2)
        assert torch.equal(poptorch.inferenceModel(lambda x: call(x, '{"by": 3}'))(X), X * 3)
        held = {"by": 4}
        poptorch.ops.attributes_lists.append(held)
        name = f"attr:{hex(id(held))}"
        assert torch.equal(poptorch.inferenceModel(lambda x: call(x, name))(X), X * 4)
        with pytest.raises(ValueError, match="Invalid attribute_id_str"):
            poptorch.inferenceModel(lambda x: call(x, "attr:0x0"))(X)
    finally:
        poptorch.registerCustomOp("Scale", "test", None)


def test_printing_and_decoding(capfd):
    assert torch.equal(poptorch.inferenceModel(printed)(X), X)
    assert "named: " in capfd.readouterr().err
    scores, lengths = torch.randn(4, 1, 3).log_softmax(2), torch.tensor([4])
    decoded = poptorch.inferenceModel(lambda s, n: ops.ctc_beam_search_decoder(s, n, 0, 5, 1))
    expected = poptorch.ctc_beam_search_decoder(scores, lengths, 0, 5, 1)
    for out, value in zip(decoded(scores, lengths), expected):
        torch.testing.assert_close(out, value)


def test_host_functions_are_asked_for_by_poptorch_cpu():
    with pytest.raises(poptorch.Error, match=r"call poptorch\.CPU"):
        poptorch.inferenceModel(lambda x: (ops.call_cpu_op([x], "f"), x)[1])(X)
    with pytest.raises(poptorch.Error, match=r"call poptorch\.CPU"):
        poptorch.inferenceModel(lambda x: ops.end_cpu_op([x])[0])(X)


def test_gradients_pass_through():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.full((3,), 2.0))

        def forward(self, x):
            ops.push_name_scope("layer")
            y = ops.recomputation_checkpoint(x * self.weight)
            y = ops.set_available_memory(ops.nop(y), 0.5)
            y = ops.internal_cast(y, "FLOAT")
            ops.pop_name_scope()
            return ops.identity_loss(y.square(), 0)

    net = Net()
    rate = 0.125
    optimizer = poptorch.optim.SGD(net.parameters(), lr=rate)
    loss = poptorch.trainingModel(net, None, optimizer)(X)
    torch.testing.assert_close(loss, (X * 2).square().sum())
    torch.testing.assert_close(net.weight.detach(), 2 - rate * (2 * X * X * 2).sum(0))


def test_all_are_there():
    """Counted once in PopTorch's RegisterAtenOverloads.cpp:884-957."""
    assert len(SCHEMAS) == 32
    assert SCHEMAS.keys() == FUNCTIONS.keys()
    for name in SCHEMAS:
        assert hasattr(ops, name), name
