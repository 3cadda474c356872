"""What goes into a call and what comes out of it: splitting, structures, changes in place."""

from __future__ import annotations

import collections
import math

import pytest
import torch
import torch.nn.functional as F

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator import CommGroupType, Options, OutputMode, inferenceModel

pytestmark = pytest.mark.simulator


def run(forward, *inputs, options=None):
    return inferenceModel(forward, options)(*inputs)


class Weighted(torch.nn.Module):
    """Returns its micro-batch and, as the loss, the micro-batch's sum times a weight."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * 1, poptorch.identity_loss((x * self.weight).sum(), "none")


def trained(mode, period=None, iterations=1, accumulation=1, replicas=1):
    """Outputs of a training call on micro-batches 0, 1, 2, ... of one number each; no update."""
    options = Options().deviceIterations(iterations).replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    options.outputMode(mode, period)
    model = Weighted()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0)
    x = torch.arange(float(iterations * accumulation * replicas))
    return poptorch.trainingModel(model, options, optimizer)(x)


@pytest.mark.parametrize(
    ("kind", "groups"),
    [(CommGroupType.Consecutive, [0, 0, 1, 1]), (CommGroupType.Orthogonal, [0, 1, 0, 1])],
)
def test_input_groups_in_every_accumulation_step_and_device_iteration(kind, groups):
    options = Options().deviceIterations(2).replicationFactor(4).inputReplicaGrouping(2, kind)
    options.Training.gradientAccumulation(3)
    options.outputMode(OutputMode.All)
    model = Weighted()
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.0))
    seen, _ = executor(torch.arange(12.0))  # 2 iterations x 3 steps x 2 groups
    expected = [2 * step + group for step in range(6) for group in groups]
    assert seen.tolist() == expected


def test_numbers_without_dimensions_are_inputs():
    model = inferenceModel(lambda x, y: x + y)
    assert model(torch.tensor(1.0), torch.tensor([2.0])).item() == 3
    assert model(torch.tensor(5.0), torch.tensor([2.0])).item() == 7


def test_only_tensors_are_split():
    def forward(x, factor, shape, name):
        return x * factor * (2 if name == "double" else 1), torch.ones(shape)

    options = Options().deviceIterations(3)
    results = run(forward, torch.arange(3.0), 6, (1, 2), "double", options=options)
    assert results[0].tolist() == [0, 12, 24]
    assert results[1].shape == (1, 2)


@pytest.mark.parametrize(
    ("mode", "replicas", "shape", "loss"),
    [
        (OutputMode.Final, 1, (), 5.0),
        (OutputMode.Sum, 1, (), 15.0),
        (OutputMode.Final, 2, (2,), [10.0, 11.0]),
        (OutputMode.Sum, 2, (2,), [30.0, 36.0]),
        (OutputMode.All, 1, (6,), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]),
    ],
)
def test_the_loss_has_one_value_for_each_replica(mode, replicas, shape, loss):
    result = trained(mode, iterations=2, accumulation=3, replicas=replicas)[1]
    assert result.shape == shape
    assert result.tolist() == loss


def test_by_default_training_returns_the_last_micro_batch_and_inference_all():
    options = Options().deviceIterations(2)
    options.Training.gradientAccumulation(3)
    model = Weighted()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0)
    seen, loss = poptorch.trainingModel(model, options, optimizer)(torch.arange(6.0))
    assert (seen.tolist(), loss.shape, loss.item()) == ([5], (), 5)
    seen, losses = inferenceModel(model, Options().deviceIterations(6))(torch.arange(6.0))
    assert seen.tolist() == losses.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("iterations", "period", "kept"),
    # All accumulation steps and replicas of device iterations N-1, 2N-1, ...
    [(4, 2, [4, 5, 6, 7, 12, 13, 14, 15]), (2, 1, [0, 1, 2, 3, 4, 5, 6, 7])],
)
def test_every_n_counts_device_iterations(iterations, period, kept):
    seen, _ = trained(OutputMode.EveryN, period, iterations, accumulation=2, replicas=2)
    assert seen.tolist() == kept


@pytest.mark.parametrize(("iterations", "period"), [(5, 2), (2, 4)])
def test_every_n_takes_a_factor_of_the_device_iterations(iterations, period):
    with pytest.raises(poptorch.Error, match=rf"must be a factor .* every {period} of"):
        trained(OutputMode.EveryN, period, iterations)
    options = Options().deviceIterations(iterations)
    options.anchorTensor("loss scale", "finalLossScale", OutputMode.EveryN, period)
    model = Weighted()
    with pytest.raises(poptorch.Error, match=r"must be a factor .*: loss scale return"):
        poptorch.trainingModel(model, options)(torch.ones(iterations))


def test_sums_are_of_numbers():
    options = Options().deviceIterations(2).outputMode(OutputMode.Sum)
    with pytest.raises(poptorch.Error, match=r"an output is of torch.bool: return output.int\(\)"):
        run(lambda x: x > 1, torch.arange(4.0), options=options)
    assert run(lambda x: (x > 1).int(), torch.arange(4.0), options=options).tolist() == [1, 1]


def test_every_n_is_not_for_pipelines():
    def forward(x):
        for ipu in range(2):
            with poptorch.Block(ipu_id=ipu):
                x = x + 1
        return x

    options = Options().deviceIterations(4).outputMode(OutputMode.EveryN, 2)
    with pytest.raises(poptorch.Error, match=r"EVERYN is not valid .* of 2 stages"):
        inferenceModel(forward, options)(torch.ones(4))
    options = options.clone().setExecutionStrategy(poptorch.ShardedExecution())
    assert inferenceModel(forward, options)(torch.ones(4)).tolist() == [3, 3]


def test_results_of_many_structures():
    class Named(collections.OrderedDict):
        pass

    seen = []

    def forward(pair, named):
        seen.append((type(pair), type(named)))
        total = pair[0] + named["x"]
        return Named(twice=(total, total), largest=torch.max(total.reshape(2, 2), 1), pair=pair)

    pair, named = (torch.arange(4.0), torch.ones(2)), Named(x=torch.ones(4))
    result = run(forward, pair, named)
    assert seen == [(tuple, Named)]
    assert type(result) is Named
    assert list(result) == ["twice", "largest", "pair"]
    assert [t.tolist() for t in result["twice"]] == [[1, 2, 3, 4]] * 2
    values, indices = result["largest"]
    assert (values.tolist(), indices.tolist()) == ([2, 4], [1, 1])
    assert [t.tolist() for t in result["pair"]] == [[0, 1, 2, 3], [1, 1]]


def test_constants_are_outputs_and_host_tensors_with_a_warning():
    here = torch.tensor([7.0])
    made, x = run(lambda x: (torch.full((2,), 3.0), x), torch.ones(1))
    assert (made.tolist(), x.tolist()) == ([3, 3], [1])
    with pytest.warns(UserWarning, match="Output expected to be on the IPU but is on cpu"):
        y, host = run(lambda x: (x + 1, here), torch.ones(1))
    assert (y.item(), host.item()) == (2, 7)


@pytest.mark.parametrize("mode", [OutputMode.All, OutputMode.Sum, OutputMode.Final])
def test_constants_return_once(mode):
    def forward(x):
        made = torch.arange(2.0)
        return made * 2 + 1, made.sum(), x, x * 0 + made, torch.rand(2)

    options = Options().deviceIterations(3).replicationFactor(2).outputMode(mode)
    made, total, seen, mixed, drawn = run(forward, torch.ones(12), options=options)
    assert (made.tolist(), total.item(), total.dim()) == ([1, 3], 1, 0)
    rows = 12 if mode == OutputMode.All else 4
    assert [len(tensor) for tensor in (seen, mixed, drawn)] == [rows] * 3


def test_no_inputs_at_all():
    class Counter(torch.nn.Module):
        def __init__(self, returns):
            super().__init__()
            self.returns = returns
            self.register_buffer("calls", torch.zeros(()))

        def forward(self):
            self.calls += 1
            return self.calls * 1 if self.returns else None

    model = inferenceModel(Counter(True))
    assert [model().item() for _ in range(3)] == [1, 2, 3]
    silent = Counter(False)
    executor = inferenceModel(silent)
    assert executor() is None
    executor.copyWeightsToHost()
    assert silent.calls == 1


def test_too_few_arguments_behind_a_variadic_forward_is_pythons_error():
    class Variadic(torch.nn.Module):
        def forward(self, *args, **kwargs):
            return self.add(*args, **kwargs)

        def add(self, a, b):
            return a + b

    assert run(Variadic(), *[torch.ones(1)] * 2).item() == 2
    with pytest.raises(TypeError, match=r"missing 1 required positional argument: 'b'"):
        run(Variadic(), torch.ones(1))


def test_positional_arguments_are_counted():
    class Variadic(torch.nn.Module):
        def forward(self, *values):
            return sum(values)

    model = inferenceModel(Variadic())
    model(*[torch.ones(1)] * 3)
    with pytest.raises(poptorch.Error, match="expected 3 arguments but got 2"):
        model(*[torch.ones(1)] * 2)


def test_an_explicit_none_differs_from_leaving_it_out():
    class Default(torch.nn.Module):
        def forward(self, x, bias=None):
            return x if bias is None else x + bias

    class Keywords(torch.nn.Module):
        def forward(self, x, **kwargs):
            return x + kwargs["bias"]

    for model, message in (
        (Default(), "Type mismatch for bias"),
        (Keywords(), r"Missing arguments: bias"),
    ):
        executor = inferenceModel(model)
        assert executor(torch.ones(1), bias=torch.ones(1)).item() == 2
        with pytest.raises(poptorch.Error, match=message):
            executor(torch.ones(1))


def test_inputs_change_in_place_also_inside_lists_and_as_out():
    def forward(x, others):
        others[0].mul_(2)
        torch.add(others[1], 1, out=others[1])
        x += 1

    x, others = torch.zeros(2), [torch.ones(1), torch.ones(1)]
    model = inferenceModel(forward)
    for call in (1, 2):  # the next call takes what the one before has left
        assert model(x, others) is None
        assert x.tolist() == [call, call]
        assert [t.item() for t in others] == [2**call, 1 + call]


def test_a_rebound_name_is_no_change_in_place():
    def forward(x):
        x = x + 1
        x += 1
        return x

    x = torch.zeros(1)
    assert run(forward, x).item() == 2
    assert x.item() == 0


def test_slices_change_in_place():
    def adjacent(x):
        x[1:3] += 10

    def every_second(x):
        x[::2] += 10

    x = torch.zeros(4)
    run(adjacent, x)
    assert x.tolist() == [0, 10, 10, 0]
    x = torch.zeros(4)
    try:
        run(every_second, x)
    except poptorch.Error as error:
        assert "slices with step size other than 1 is not supported" in error.message  # noqa: PT017
    else:
        assert x.tolist() == [10, 0, 10, 0]


def test_branches_take_their_inputs_by_value():
    def forward(flag, x):
        (y,) = poptorch.cond(flag, lambda z: z.add_(1), [x], lambda z: z.sub_(1), [x])
        return x * 1, y

    model = inferenceModel(forward)
    for flag, expected in ((True, (0, 1)), (False, (0, -1))):
        x, y = model(torch.tensor(flag), torch.zeros(1))
        assert (x.item(), y.item()) == expected


def test_control_flow_runs_on_the_cpu_too():
    (y,) = poptorch.cond(
        torch.tensor(False), lambda x: x + 1, [torch.ones(1)], lambda x: x - 1, [torch.ones(1)]
    )
    assert y.item() == 0


def test_float64_values_are_compared_as_float32():
    below = torch.tensor([1 - 1e-12, 0.5], dtype=torch.float64)
    assert (below == 1).tolist() == [False, False]
    assert run(lambda x: x == 1, below).tolist() == [True, False]


@pytest.mark.parametrize("half_first", [True, False])
def test_half_with_float_is_float(half_first):
    a, b = torch.ones(2).half(), torch.ones(2)
    pair = (a, b) if half_first else (b, a)
    assert run(lambda x, y: x + y, *pair).dtype == torch.float32


def test_factories_keep_the_type_they_are_given():
    def forward(x):
        kinds = {"dtype": torch.float16}
        made = [torch.zeros(2, **kinds), torch.full((2,), 2.0, **kinds), torch.ones_like(x)]
        return made, torch.zeros(2)

    made, plain = run(forward, torch.ones(2).half())
    assert [t.dtype for t in made] == [torch.float16] * 3
    assert plain.dtype == torch.float32


@pytest.mark.parametrize("norm", [torch.nn.BatchNorm2d(4), torch.nn.GroupNorm(2, 4)])
def test_float16_data_through_a_float32_norm(norm):
    x = torch.randn(2, 4, 3, 3)
    result = run(norm.eval(), x.half())
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.float(), norm(x.half().float()), rtol=1e-3, atol=1e-3)


def test_a_float16_batch_norm_with_float32_statistics():
    norm = torch.nn.BatchNorm1d(3).half()
    norm.running_mean, norm.running_var = norm.running_mean.float(), norm.running_var.float()
    x = torch.randn(8, 3).half()
    result = run(norm.train(), x)
    expected = F.batch_norm(x.float(), None, None, training=True)
    assert result.dtype == torch.float16
    torch.testing.assert_close(result.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    ("target", "source", "size", "message"),
    [
        (torch.ones(8), torch.ones(1), 0, "start and end of a slice must be different"),
        (torch.ones(2, 8), torch.ones(8), 1, r"same dimensionality\. \(2\) vs \(1\)"),
        (torch.ones(8), torch.tensor([-1]), 1, r"\(torch\.float32 vs torch\.int32\)"),
    ],
)
def test_dynamic_update_refuses(target, source, size, message):
    with pytest.raises(poptorch.Error, match=message):
        run(
            lambda t, s, start: poptorch.dynamic_update(t, s, 0, start, size),
            *(target, source, torch.tensor([1])),
        )


def test_dynamic_update_takes_sizes_that_do_not_divide():
    result = run(
        lambda t, s, start: poptorch.dynamic_update(t, s, 0, start, 2),
        *(torch.tensor([2.0, 2.0, 3.0]), torch.tensor([-1.0, -1.0]), torch.tensor([1])),
    )
    assert result.tolist() == [2, -1, -1]


def test_scopes_and_attributes_change_no_value():
    def forward(x):
        with poptorch.NameScope("scope"), poptorch.Attribute(__outline={"layer": "embedding"}):
            return torch.relu(x) * 2

    x = torch.randn(5)
    assert torch.equal(run(forward, x), torch.relu(x) * 2)


def test_where_a_model_runs():
    class Where(torch.nn.Module):
        def forward(self, x):
            return x + (1 if poptorch.isRunningOnIpu() else 2)

    model = Where()
    assert run(model, torch.zeros(1)).item() == 1
    assert model(torch.zeros(1)).item() == 2
    assert not poptorch.isRunningOnIpu()


def test_a_seed_inside_the_model():
    def forward(x):
        torch.manual_seed(42)
        return x + torch.randn(1000)

    result = run(forward, torch.zeros(1000))
    assert abs(result.mean().item()) < 4 / math.sqrt(1000)
    assert result.std().item() == pytest.approx(1, abs=0.1)


def test_inputs_that_require_gradients_are_detached_with_a_warning(caplog):
    run(lambda x: x * 2, torch.ones(2))
    assert caplog.text == ""
    result = run(lambda x: x * 2, torch.ones(2, requires_grad=True))
    assert "Input tensor has requires_grad=True set" in caplog.text
    assert not result.requires_grad
