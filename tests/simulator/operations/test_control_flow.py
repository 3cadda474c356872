"""Loops, branches, host functions and slices that depend on run-time values."""

from __future__ import annotations

import pytest
import torch

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


def test_for_loop_compiles_its_body_once():
    calls = []

    def body(x, y):
        calls.append(1)
        return x * 2, y + x

    def forward(x):
        return poptorch.for_loop(3, body, [x, x * 0])

    model = poptorch.inferenceModel(forward)
    assert [t.item() for t in model(torch.tensor([1.0]))] == [8, 7]
    assert [t.item() for t in model(torch.tensor([2.0]))] == [16, 14]
    assert len(calls) == 1


def test_loops_and_branches_give_lists():
    def forward(flag, x):
        loop = poptorch.for_loop(2, lambda y: y + 1, [x])
        branch = poptorch.cond(flag, lambda y: y, [x], lambda y: -y, [x])
        return loop, branch

    loop, branch = poptorch.inferenceModel(forward)(torch.tensor(False), torch.ones(1))
    assert type(loop) is type(branch) is list
    assert (loop[0].item(), branch[0].item()) == (3, -1)


def test_for_loop_takes_its_inputs_by_value():
    def forward(x):
        (y,) = poptorch.for_loop(2, lambda z: z.add_(1), [x])
        return x * 1, y

    x, y = poptorch.inferenceModel(forward)(torch.zeros(1))
    assert (x.item(), y.item()) == (0, 2)


@pytest.mark.parametrize("inputs", [(torch.ones(1),), [1.0]])
def test_for_loop_wants_a_list_of_tensors(inputs):
    with pytest.raises(ValueError, match="to be a list of tensors"):
        poptorch.for_loop(1, lambda x: x, inputs)


def test_cond_decides_at_run_time():
    def forward(flag, x):
        outer = x + 1
        (result,) = poptorch.cond(
            flag, lambda a: a + outer, [x], lambda a: poptorch.cond(
                a.sum() > 0, lambda: outer * 10, [], lambda: outer * 100, []
            )[0], [x]
        )  # fmt: skip
        return result

    model = poptorch.inferenceModel(forward)
    yes, no = torch.tensor(True), torch.tensor(False)
    assert model(yes, torch.tensor([1.0])).item() == 3
    assert model(no, torch.tensor([1.0])).item() == 20
    assert model(no, torch.tensor([-1.0])).item() == 0
    assert model(yes, torch.tensor([-1.0])).item() == -1


@pytest.mark.parametrize("condition", [torch.tensor([True, False]), torch.tensor(1.0)])
def test_a_condition_is_one_boolean(condition):
    def forward(flag, x):
        return poptorch.cond(flag, lambda: x + 1, [], lambda: x - 1, [])[0]

    with pytest.raises(poptorch.Error, match="the condition must be one boolean"):
        poptorch.inferenceModel(forward)(condition, torch.zeros(2))
    assert poptorch.inferenceModel(forward)(torch.tensor([1]), torch.zeros(2)).tolist() == [1, 1]


def test_control_flow_is_for_inference():
    class Model(torch.nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))
            self.outputs = outputs

        def forward(self, x):
            return poptorch.identity_loss(self.outputs(self.weight * x), "sum")

    loop = Model(lambda x: poptorch.for_loop(2, lambda y: y * 2, [x])[0])
    branch = Model(lambda x: poptorch.cond(x > 0, lambda: x, [], lambda: x, [])[0])
    host = Model(poptorch.CPU(lambda x: x * 2, "double"))
    for name, model in (("for_loop", loop), ("cond", branch), ("CPU", host)):
        with pytest.raises(poptorch.Error, match=rf"poptorch.{name}\(\) is only supported in infe"):
            poptorch.trainingModel(model)(torch.ones(1))


def test_cpu_runs_the_function_at_every_run():
    seen = []

    def on_host(x, y):
        seen.append(x.numpy().copy())
        return x + y, x - y

    cpu = poptorch.CPU(on_host, "op")
    model = poptorch.inferenceModel(lambda x: cpu(x * 2, x))
    assert [t.item() for t in model(torch.tensor([5.0]))] == [15, 5]
    assert [t.item() for t in model(torch.tensor([1.0]))] == [3, 1]
    assert [float(x[0]) for x in seen[-2:]] == [10, 2]


def test_one_host_function_may_be_called_several_times():
    cpu = poptorch.CPU(lambda x: x * 3, "triple")

    def forward(x):
        return cpu(cpu(x) + 1)

    model = poptorch.inferenceModel(forward)
    assert [model(torch.tensor([value])).item() for value in (1.0, 2.0)] == [12, 21]


def test_weights_train_through_dynamic_slices():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(6))

        def forward(self, x, start):
            taken = poptorch.dynamic_slice(self.weight, 0, start, 2, 1)
            written = poptorch.dynamic_update(self.weight, x, 0, start, 2)
            return poptorch.identity_loss(taken * x, "sum") + 10 * written.sum()

    class Loss(Model):
        def forward(self, x, start):
            return poptorch.identity_loss(super().forward(x, start), "sum")

    model = Loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    executor = poptorch.trainingModel(model, optimizer=optimizer)
    executor(torch.tensor([1.0, 2.0]), torch.tensor([1]))
    assert model.weight.tolist() == [-10, -1, -2, -10, -10, -10]
    executor(torch.tensor([1.0, 2.0]), torch.tensor([4]))
    assert model.weight.tolist() == [-20, -11, -12, -20, -11, -12]


def test_dynamic_slices_read_their_start_at_run_time():
    def forward(x, start):
        piece = poptorch.dynamic_slice(x, 0, start, 4, 2)
        return piece, poptorch.dynamic_update(x, piece.repeat(2) * 0, 0, start, 4)

    model = poptorch.inferenceModel(forward)
    x = torch.arange(8.0)
    for start in (1, 4, 0):
        piece, updated = model(x, torch.tensor([start]))
        expected = x.clone()
        expected[start : start + 4] = 0
        assert piece.tolist() == x[start : start + 4 : 2].tolist()
        assert updated.tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("size", "message"),
    [(0, "must be different"), (-2, "end less than the start"), (7, r"size of the slice \(7\)")],
)
def test_dynamic_slice_refuses_sizes(size, message):
    with pytest.raises(poptorch.Error, match=message):
        poptorch.inferenceModel(
            lambda x, s: poptorch.dynamic_slice(x, 0, s, size, 1)
        )(torch.ones(8), torch.tensor([1]))  # fmt: skip


def test_custom_op_runs_its_python_equivalent():
    def forward(x):
        return poptorch.custom_op([x], "Cube", "my.ops", 1, [x], attributes={"scale": 2.0})[0]

    with pytest.raises(poptorch.Error, match=r"Custom operator my.ops.Cube .* registerCustomOp"):
        poptorch.inferenceModel(forward)(torch.ones(1))
    poptorch.registerCustomOp("Cube", "my.ops", lambda x, scale: scale * x**3)
    try:
        assert poptorch.inferenceModel(forward)(torch.tensor([3.0])).item() == 54
    finally:
        poptorch.registerCustomOp("Cube", "my.ops", None)


def test_a_custom_op_may_use_what_poptorch_has_no_operators_for_and_trains():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([0.5]))

        def forward(self, x):
            y = poptorch.custom_op([self.weight * x], "Erfinv", "my.ops", 1, [x])[0]
            return poptorch.identity_loss(y, "sum")

    poptorch.registerCustomOp("Erfinv", "my.ops", torch.erfinv)
    try:
        model = Model()
        reference = torch.tensor([0.5], requires_grad=True)
        torch.erfinv(reference).backward()
        poptorch.trainingModel(model)(torch.ones(1))
    finally:
        poptorch.registerCustomOp("Erfinv", "my.ops", None)
    torch.testing.assert_close(model.weight.detach(), torch.tensor([0.5]) - 0.01 * reference.grad)


def test_randomness_follows_the_seed_and_differs_between_replicas():
    def numbers(seed, replicas=1):
        options = poptorch.Options().randomSeed(seed).replicationFactor(replicas)
        model = poptorch.inferenceModel(lambda x: x + torch.rand(4), options)
        state = torch.get_rng_state()
        result = model(torch.zeros(4 * replicas)), model(torch.zeros(4 * replicas))
        assert torch.equal(torch.get_rng_state(), state)
        return result

    first, second = numbers(7)
    assert not torch.equal(first, second)
    assert torch.equal(numbers(7)[0], first)
    assert torch.equal(numbers(7)[1], second)
    assert not torch.equal(numbers(8)[0], first)
    two, _ = numbers(7, replicas=2)
    assert torch.equal(two[:4], first)
    assert not torch.equal(two[4:], two[:4])


def test_a_branch_taken_otherwise_gives_results_with_dimensions():
    def forward(flag, x):
        return poptorch.cond(flag, lambda: x.sum(), [], lambda: x.max(), [])[0]

    with pytest.raises(poptorch.Error, match="result 0 of else_body has no dimensions"):
        poptorch.inferenceModel(forward).compile(torch.tensor(True), torch.ones(2))
