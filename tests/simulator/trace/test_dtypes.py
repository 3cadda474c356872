"""The device's numbers: 32 bits at most; float16 stored, float32 partials, one rounding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ipu_proxynorm.simulator import Options, identity_loss, inferenceModel, trainingModel
from ipu_proxynorm.simulator.optim import SGD
from ipu_proxynorm.simulator.trace.arithmetic.dtypes import round_stochastically

pytestmark = pytest.mark.simulator


def run(function, *inputs, options=None):
    return inferenceModel(function, options)(*inputs)


def test_64_bits_become_32():
    seen = []

    def forward(a, b):
        seen.extend([a.dtype, b.dtype, (a + 1).dtype, b.double().dtype, a.argmax().dtype])
        return a, b, torch.arange(3), torch.tensor([1, 2])

    results = run(forward, torch.arange(4), torch.ones(2, dtype=torch.float64))
    assert seen == [torch.int32, torch.float32, torch.int32, torch.float32, torch.int32]
    assert [r.dtype for r in results] == [torch.int32, torch.float32, torch.int32, torch.int32]


def test_autocast_leaves_the_devices_tensors_alone():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 2)

        def forward(self, x):
            with torch.autocast("cpu"):
                y = self.linear(x)
            return y, identity_loss(y.square() @ y, "mean")

    model, x = Model(), torch.randn(2, 2)
    expected = model.linear(x)
    with torch.autocast("cpu"):  # around compiling, the backward pass and running
        trainer = trainingModel(model, optimizer=SGD(model.parameters(), 0.1))
        results = [trainer(x)[0] for _ in range(2)]
    assert results[0].dtype == torch.float32
    assert torch.allclose(results[0], expected, atol=1e-6)
    assert not torch.equal(*results)


@pytest.mark.parametrize("mode", ["floor", "trunc"])
def test_quotients_of_integers_are_cut_off(mode):
    dividends, divisors = torch.tensor([7, -7, 9]), torch.tensor([2, 2, -4])
    quotients = run(lambda a, b: torch.div(a, b, rounding_mode=mode), dividends, divisors)
    assert quotients.tolist() == [3, -3, -2]
    assert quotients.dtype == torch.int32


@pytest.mark.parametrize(
    ("divide", "expected"),
    [
        (lambda a: a / 2, [3, -3, 4, 2**30 - 1]),
        (lambda a: a.div(a[1]), [-1, 1, -1, -306783378]),
        (lambda a: (a > 0).sum() / 2 + a * 0, [1, 1, 1, 1]),
        (lambda a: a / 2.0, [3.5, -3.5, 4.5, 2.0**30]),
        (lambda a: 7 / a[:3], [1, -1, 7 / 9]),  # a reciprocal, which converts
    ],
)
def test_exact_quotients_of_integers_lose_their_fraction(divide, expected, caplog):
    result = run(divide, torch.tensor([7, -7, 9, 2**31 - 1]))
    assert result.dtype == torch.float32
    assert result.tolist() == torch.tensor(expected).float().tolist()
    whole = all(value == int(value) for value in expected)
    assert ("divides integers" in caplog.text) == whole
    assert ("test_dtypes.py" in caplog.text) == whole


def test_quotients_of_constants_are_those_of_torch():
    def forward(x):
        constant = torch.arange(-7, -5, device=x.device)
        return x + torch.div(constant, 2, rounding_mode="floor"), constant / 2

    rounded, exact = run(forward, torch.zeros(2))
    assert (rounded.tolist(), exact.tolist()) == ([-4, -3], [-3.5, -3])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.bool, torch.float16])
def test_small_types_stay(dtype):
    assert run(lambda x: x, torch.ones(3).to(dtype)).dtype == dtype


def test_an_int64_input_changed_in_place_stays_int64_on_the_host():
    x = torch.tensor([1, 2])
    run(lambda x: x.add_(5), x)
    assert x.dtype == torch.int64
    assert x.tolist() == [6, 7]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x.gather(0, i),
        lambda x, i: x[i],
        lambda x, i: torch.zeros(4).scatter_add(0, i, x),
        lambda x, i: F.nll_loss(x.unsqueeze(0), i[:1]),
        lambda x, i: F.one_hot(i, 5),
        lambda x, i: x.index_select(0, i),
        lambda x, i: torch.take_along_dim(x, x.argsort(0), 0),
        lambda x, i: torch.bincount(i, minlength=4),
        lambda x, i: F.embedding(i, x.unsqueeze(1)),
    ],
)
def test_indices_work_although_they_are_32_bits(function):
    x, i = torch.tensor([3.0, 1.0, 2.0, 0.0]), torch.tensor([1, 0, 3, 2])
    torch.testing.assert_close(run(function, x, i), function(x, i), check_dtype=False)


HALF = {
    "matmul": lambda a, b: a @ b,
    "sum": lambda a, b: a.sum(0),
    "softmax": lambda a, b: a.softmax(1),
    "silu": lambda a, b: F.silu(a),
    "clamp": lambda a, b: a.clamp(-1, 1),
    "mean": lambda a, b: a.mean(),
}


@pytest.mark.parametrize("name", HALF)
def test_float16_is_float32_rounded_once(name):
    a, b = torch.randn(64, 64).half(), torch.randn(64, 64).half()
    result = run(HALF[name], a, b)
    expected = HALF[name](a.float(), b.float()).half()
    assert result.dtype == torch.float16
    assert torch.equal(result, expected)


def test_each_operation_rounds():
    x = torch.tensor([2048.0]).half()  # float16 has no 2049
    assert run(lambda x: (x + 1) - 2048, x).item() == 0
    y = x.clone()
    assert run(lambda x: x.add_(1).sub_(2048), y).item() == 0
    assert y.item() == 0


@pytest.mark.parametrize(
    ("data", "weights", "result"),
    [(torch.float16, torch.float32, torch.float16), (torch.float32, torch.float16, torch.float32)],
)
def test_layers_give_the_type_of_the_activations(data, weights, result):
    linear, unbiased = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2, bias=False)
    shapes = ((4,), (3, 4), (2, 3, 4), (2, 2, 3, 4))
    cases = [(torch.nn.Conv2d(4, 2, 1, bias=False), (1, 4, 3, 3))]
    cases += [(torch.nn.Conv1d(4, 2, 1), (1, 4, 3))]
    cases += [(layer, shape) for layer in (linear, unbiased) for shape in shapes]
    for layer, shape in cases:
        promotes = layer is linear and len(shape) in (2, 3)  # an addmm
        expected = torch.float32 if promotes else result
        assert run(layer.to(weights), torch.ones(shape, dtype=data)).dtype == expected


MIXED = {
    "mm": (torch.mm, ((2, 3), (3, 4)), "first"),
    "bmm": (torch.bmm, ((2, 2, 3), (2, 3, 4)), "last"),
    "dot": (torch.dot, ((4,), (4,)), "first"),
    "mv": (torch.mv, ((2, 4), (4,)), "promoted"),
    "addmm": (torch.addmm, ((4,), (2, 3), (3, 4)), "promoted"),
    "addmv": (torch.addmv, ((2,), (2, 3), (3,)), "last"),
    "baddbmm": (torch.baddbmm, ((3, 2, 4), (3, 2, 3), (3, 3, 4)), "last"),
    "add": (torch.add, ((4,), (4,)), "promoted"),
}


def _of_constants(function, inputs):
    return lambda x: function(*[t.to("ipu") for t in inputs])


@pytest.mark.parametrize("name", MIXED)
def test_mixed_types_give_what_torch_2_0_infers_on_meta_tensors(name):
    function, shapes, rule = MIXED[name]
    for first in (torch.float16, torch.float32):
        last = torch.float32 if first == torch.float16 else torch.float16
        dtypes = [first] * (len(shapes) - 1) + [last]
        expected = {"first": first, "last": last, "promoted": torch.float32}[rule]
        inputs = [torch.ones(*s, dtype=d) for s, d in zip(shapes, dtypes)]
        assert run(_of_constants(function, inputs), torch.ones(1)).dtype == expected
        if torch.__version__.startswith("2.0."):
            assert function(*[t.to("meta") for t in inputs]).dtype == expected


@pytest.mark.parametrize("stable", [False, True])
@pytest.mark.parametrize("layer", [torch.nn.GroupNorm(2, 6), torch.nn.LayerNorm((6, 3))])
def test_norms_of_float16_round_their_statistics_and_each_step(layer, stable):
    """Against the same steps in NumPy, whose float16 rounds each result."""
    x = (3 * torch.randn(2, 6, 3) + 5).half()
    torch.nn.init.uniform_(layer.weight)
    torch.nn.init.uniform_(layer.bias)
    grouped = isinstance(layer, torch.nn.GroupNorm)
    rows = x.numpy().reshape(2, 2 if grouped else 1, -1)
    mean = rows.astype(np.float64).mean(2, keepdims=True).astype(np.float16)
    about = rows - mean if stable else rows
    variance = np.square(about.astype(np.float64)).mean(2, keepdims=True)
    variance -= 0 if stable else mean.astype(np.float64) ** 2
    inv_std = (1 / np.sqrt(variance + layer.eps)).astype(np.float16)
    parameters = [p.detach().half().numpy() for p in (layer.weight, layer.bias)]
    scale, shift = (p.reshape(1, -1, 1) if grouped else p for p in parameters)
    y = ((rows - mean) * inv_std).reshape(x.shape) * scale + shift
    assert y.dtype == np.float16
    options = Options().enableStableNorm(stable)
    assert np.array_equal(inferenceModel(layer, options)(x).numpy(), y)
    exact = layer.double()(x.double()).half()
    layer.float()
    assert not np.array_equal(y, exact.detach().numpy())  # one rounding gives others


def test_erfc_is_one_minus_erf():
    x = torch.tensor([0.5, 3.0, 4.5])
    result = run(torch.erfc, x)
    assert torch.equal(result, 1 - torch.erf(x))
    assert result[2] != torch.erfc(x)[2]


class Selected(torch.nn.Module):
    """Selects between an exponential, whose gradient is infinite, and a parameter."""

    def __init__(self, fills):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([1.0, 200.0]))
        self.bound = torch.nn.Parameter(torch.tensor([2.0]))
        self.fills = fills

    def forward(self, factor):
        y = self.x * 1.0
        high = self.x > 100
        y = y.masked_fill(high, 2.0) if self.fills else torch.where(high, self.bound, y)
        return identity_loss((y * factor).sum(), reduction="none")


@pytest.mark.parametrize("fills", [False, True])
def test_the_gradient_of_a_select_is_a_product(fills):
    model = Selected(fills)
    executor = trainingModel(model, None, SGD(model.parameters(), lr=1.0))
    executor(torch.tensor([3.0, 5.0]))
    assert model.x.tolist() == [-2.0, 200.0]
    executor(torch.tensor([3.0, float("inf")]))
    assert model.x[1].isnan()  # infinity times 0, where a select gives 0


def test_float16_data_train_float32_weights():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 1, bias=False)

        def forward(self, x):
            return identity_loss(self.linear(x), "sum")

    model = Model()
    before = model.linear.weight.detach().clone()
    loss = trainingModel(model)(torch.ones(2, 3).half())
    assert loss.dtype == torch.float16
    assert model.linear.weight.dtype == torch.float32
    torch.testing.assert_close(before - model.linear.weight.detach(), torch.full((1, 3), 0.02))


def test_loss_scaling_overflows_float16():
    from ipu_proxynorm.simulator import optim

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2).half())

        def forward(self, x):
            return identity_loss((self.weight * x).sum(), "sum")

    for scaling, finite in ((1024.0, True), (1e6, False)):
        model = Model()
        optimizer = optim.SGD(model.parameters(), lr=0.5, loss_scaling=scaling)
        trainingModel(model, Options(), optimizer)(torch.ones(2).half())
        assert bool(model.weight.isfinite().all()) is finite
        if finite:
            assert model.weight.tolist() == [0.5, 0.5]


def test_stochastic_rounding_has_the_exact_mean():
    options = Options()
    options.Precision.enableStochasticRounding(True)
    # A quarter of the way from 1 to the next float16, 1 + 2^-10.
    x = torch.full((100_000,), 1 + 2**-12)
    rounded = run(lambda x: x.half(), x, options=options).float()
    assert set(rounded.tolist()) == {1.0, 1 + 2**-10}
    assert rounded.mean().item() == pytest.approx(1 + 2**-12, abs=4 * 2**-10 * 0.44 / 316)


@pytest.mark.parametrize("value", [0.0, 1.0, -2.5, 65504.0, 2**-24, -(2**-20), float("inf")])
def test_stochastic_rounding_leaves_float16_numbers_alone(value):
    assert (round_stochastically(torch.full((1000,), value)) == value).all()


@pytest.mark.parametrize("value", [-3.14159, 2**-15 * 1.37, 3e-8, -1e-9])
def test_stochastic_rounding_of_small_numbers(value):
    rounded = round_stochastically(torch.full((400_000,), value)).double()
    gap = rounded.max() - rounded.min()
    deviation = gap / 2 / 400_000**0.5
    assert abs(rounded.mean().item() - value) < 5 * deviation + 1e-12
    assert len(rounded.unique()) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_backward_pass_sees_what_an_operator_has_written_besides(dtype):
    class Leaky(torch.nn.Module):  # rrelu draws its slopes into a tensor that backward() reads
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(100, dtype=dtype))

        def forward(self, x):
            y = F.rrelu(x * self.scale, training=True)
            return y, identity_loss(y.sum(), "none")

    model, x = Leaky(), -torch.ones(100, dtype=dtype)
    y, _ = trainingModel(model, None, SGD(model.parameters(), lr=1.0))(x)
    torch.testing.assert_close(1 - model.scale.detach(), y, rtol=5e-3, atol=0)


def test_several_results_are_written_where_the_model_wants_them():
    def forward(x):
        values = torch.empty(2, dtype=x.dtype, device="ipu")
        indices = torch.empty(2, dtype=torch.long, device="ipu")
        torch.topk(x, 2, out=(values, indices))
        return values, indices

    values, indices = run(forward, torch.tensor([1.0, 3.0, 2.0]).half())
    assert (values.tolist(), indices.tolist()) == ([3, 2], [1, 2])


@pytest.mark.parametrize(
    ("in_place", "plain"),
    [
        (torch.relu_, torch.relu),
        (lambda x: x.add_(1), lambda x: x + 1),
        (lambda x: x.copy_(x.float() * 2), lambda x: x * 2),
        (lambda x: x.bernoulli_(1.0), torch.ones_like),  # exists in place only
    ],
)
def test_float16_in_place(in_place, plain):
    x = torch.randn(10).half()
    assert torch.equal(run(lambda x: in_place(x.clone()), x), plain(x.float()).half())


@pytest.mark.parametrize("function", [torch.var, torch.std])
@pytest.mark.parametrize(
    ("dim", "correction", "keepdim"), [(None, 1, False), (1, 0, True), ((0, -1), 1, False)]
)
def test_variances_are_taken_apart(function, dim, correction, keepdim):
    """As PopTorch has it (ArithmeticOps.cpp:211): in float32 the same but for rounding."""
    x = torch.randn(3, 4, 5)

    def forward(x):
        return function(x, dim=dim, correction=correction, keepdim=keepdim)

    torch.testing.assert_close(inferenceModel(forward)(x), forward(x))
    spread, mean = inferenceModel(
        lambda x: torch.var_mean(x, dim=dim, correction=correction, keepdim=keepdim)
    )(x)
    torch.testing.assert_close(mean, torch.mean(x, dim or (), keepdim))
    torch.testing.assert_close(
        spread, torch.var(x, dim=dim, correction=correction, keepdim=keepdim)
    )


def test_a_variance_of_float16_overflows_where_its_squares_do():
    x = torch.tensor([-300.0, 300.0]).half()
    function = inferenceModel(lambda x: torch.var(x, dim=0, correction=0))
    assert torch.isinf(function(x))
    assert function(x / 2).item() == 22496  # of 22500, the nearest float16
    function = inferenceModel(lambda x: torch.var(x.float(), dim=0, correction=0))
    assert function(x).item() == 90000


def test_any_correction_but_none_is_one():
    x = torch.randn(5)
    function = inferenceModel(lambda x: torch.var(x, dim=0, correction=2))
    torch.testing.assert_close(function(x), torch.var(x, dim=0, correction=1))


def test_what_no_bin_is_for_counts_at_the_inputs_last_index():
    """OtherOps.cpp:58-61, where torch would make more bins."""

    def count(x):
        return run(lambda x: torch.bincount(x, minlength=3), x).tolist()

    assert count(torch.tensor([0, 1, 7])) == [1, 1, 1]
    assert count(torch.tensor([0, 1, 1, 7])) == [1, 2, 0]
