"""What the compiler would refuse is refused, with the line of the model and a way out."""

from __future__ import annotations

import copy
import inspect
import types

import pytest
import torch

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


def compile_model(forward, *inputs):
    return poptorch.inferenceModel(forward).compile(*inputs)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda x: x * x.sum().item(), r"reads a tensor's value on the host \(.item\(\)"),
        (lambda x: x if x.sum() > 0 else -x, "reads a tensor's value on the host"),
        (lambda x: x + int(x[0]), "reads a tensor's value on the host"),
        (lambda x: x + x.numpy().sum(), r"on the host \(.numpy\(\)\)"),
        (lambda x: x + sum(x.tolist()), r"on the host \(.tolist\(\)\)"),
        (lambda x: x[x > 0], "shape of the result of aten.index.Tensor depends on values"),
        (lambda x: x.nonzero(), "depends on values"),
        (lambda x: torch.erfinv(x), r"Unsupported ops found in compiled model: \[aten::erfinv\]"),
        (lambda x: torch.fft.fft(x), "Unsupported ops found in compiled model"),
        (lambda x: x + torch.eye(3)[0], r"Expected an IPU tensor but got tensor\(device=cpu"),
        (lambda x: x.cpu(), "Illegal move to CPU"),
        (lambda x: torch.bincount(x.int()), "minlength` must be specified"),
        (lambda x: torch.nn.functional.one_hot(x.int()), "num classes must be specified"),
        (lambda x: x[3:], "Zero-sized tensors are unsupported"),
        (lambda x: x.bfloat16(), "torch.bfloat16 are unsupported .* use torch.float16"),
    ],
)
def test_refused(forward, message):
    with pytest.raises(poptorch.Error, match=message):
        compile_model(forward, torch.ones(3))
    assert not poptorch.poptorch_core.isCompilingWithDispatcher()
    assert not poptorch.isRunningOnIpu()


def _written(values):
    """Return a model that looks at the lower triangle of a tensor that it has written to."""

    def forward(x):
        mask = torch.zeros(4, 4, device=x.device)
        values(mask[1:3, :3], x)
        return x * mask.tril()

    return forward


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x * torch.ones(4, 4, device=x.device).tril(),
        lambda x: x @ torch.eye(4, device=x.device),
        lambda x: x - torch.diag(torch.arange(4.0, device=x.device)),
        lambda x: torch.nn.functional.scaled_dot_product_attention(
            x[None], x[None], x[None], is_causal=True
        ),
        _written(lambda part, x: part.fill_(2)),
    ],
)
def test_torch_computes_what_depends_on_constants_alone(forward):
    x = torch.rand(4, 4)
    torch.testing.assert_close(poptorch.inferenceModel(forward)(x), forward(x))


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: x.tril(),
        lambda x: x * torch.poisson(torch.ones(4, 4, device=x.device)),
        _written(lambda part, x: part.copy_(x[:2, :3])),
        _written(lambda part, x: part.normal_()),
    ],
)
def test_what_is_written_or_drawn_is_no_constant(forward):
    with pytest.raises(poptorch.Error, match="Unsupported ops found in compiled model"):
        compile_model(forward, torch.rand(4, 4))


def test_the_error_names_file_and_line():
    def forward(x):
        y = x + 1
        return y * y.max().item()

    with pytest.raises(poptorch.Error) as caught:
        compile_model(forward, torch.ones(3))
    line = inspect.getsourcelines(forward)[1] + 2
    assert caught.value.location == f"{__file__}:{line}"
    assert caught.value.location in str(caught.value)


def _reads(model, x):
    return x * x.max().item()  # HERE


def _host_tensor(model, x):
    return x + torch.ones(3, device="cpu")  # HERE


def _copies(model, x):
    return x + copy.deepcopy(x)  # HERE


def _moves(model, x):
    return x.to("cuda")  # HERE


def _slices(model, x):
    start = torch.zeros((), dtype=torch.int32)
    return poptorch.dynamic_slice(x, 1, start, 2, 1)  # HERE


def _counts(model, x):
    return torch.bincount(x.int().flatten())  # HERE


def _loops(model, x):
    return poptorch.for_loop(2, lambda y: torch.cat([y, y]), [x])[0]  # HERE


def _branches(model, x):
    flag = x.sum() > 0
    return poptorch.cond(flag, lambda y: y, [x], lambda y: y.int(), [x])[0]  # HERE


def _overlaps(model, x):
    mode = poptorch.OverlapMode.OverlapAccumulationLoop
    return poptorch.set_overlap_for_input(x, mode) + 1  # HERE


def _custom(model, x):
    return poptorch.custom_op([x], "Missing", "my.ops", 1, [x])[0]  # HERE


def _prints(model, x):
    return poptorch.ipu_print_tensor(x, float_format="pretty")  # HERE


def _writes(model, x):
    x = x + 1
    model.total.add_(x.sum())  # HERE
    return x


def _rebinds(model, x):  # HERE
    model.total = x.sum()
    return x


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (_reads, "reads a tensor's value"),
        (_host_tensor, r"Expected an IPU tensor but got tensor\(device=cpu"),
        (_copies, "Expected an IPU tensor"),
        (_moves, "Illegal move"),
        (_slices, r"slice \(2\) must be a factor of the slicing dimension \(3\)"),
        (_counts, "minlength` must be specified"),
        (_loops, r"float32 of shape \(2, 3\) as input 0 but returns .* of shape \(4, 3\)"),
        (_branches, r"then_body is torch.float32 of .* else_body torch.int32 of"),
        (_overlaps, "Overlapped IO is not supported"),
        (_custom, "Custom operator my.ops.Missing"),
        (_prints, "float_format is 'pretty', but must be one of auto"),
        (_writes, "The model writes to total"),
        (_rebinds, "Buffer total is reassigned"),
    ],
)
def test_whatever_is_refused_the_error_names_the_line(forward, message):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.zeros(()))

    model = Model()
    model.forward = types.MethodType(forward, model)
    source, first = inspect.getsourcelines(forward)
    line = first + next(i for i, text in enumerate(source) if text.endswith("# HERE\n"))
    with pytest.raises(poptorch.Error, match=message) as caught:
        poptorch.inferenceModel(model, poptorch.Options().replicationFactor(2))(torch.ones(4, 3))
    assert f"({__file__}:{line})" in str(caught.value)
    assert f"({__file__}:{line})" in caught.value.message


def test_errors_about_losses_name_their_lines():
    class Model(torch.nn.Module):
        def __init__(self, losses):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))
            self.losses = losses

        def forward(self, x):
            y = self.weight * x
            for _ in range(self.losses):
                y = y.detach() + torch.nn.functional.mse_loss(self.weight, x)
            return y

    first = inspect.getsourcelines(Model.forward)[1]
    with pytest.raises(poptorch.Error, match="Couldn't find a loss") as caught:
        poptorch.trainingModel(Model(0))(torch.ones(3))
    assert caught.value.location == f"{__file__}:{first}"
    with pytest.raises(poptorch.Error, match="Multiple independent losses") as caught:
        poptorch.trainingModel(Model(2))(torch.ones(3))
    assert caught.value.location == ", ".join([f"{__file__}:{first + 3}"] * 2)


def test_the_lines_of_torchs_own_modules_are_nobodys_concern():
    with pytest.raises(poptorch.Error, match="Couldn't find a loss") as caught:
        poptorch.trainingModel(torch.nn.Sequential(torch.nn.Linear(3, 2)))(torch.ones(1, 3))
    assert caught.value.location == ""


def test_complex_numbers():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))

        def forward(self, x):
            return x * 2

    with pytest.raises(poptorch.Error, match=r"complex64 are unsupported \(Got an input of shape"):
        compile_model(lambda x: x * 2, torch.ones(2, dtype=torch.complex64))
    with pytest.raises(poptorch.Error, match=rf"\(Got phase of shape \[2\]\).*\({__file__}:"):
        poptorch.inferenceModel(Model())(torch.ones(2))
    assert not poptorch.isRunningOnIpu()


def test_printing_a_tensor_shows_that_it_has_no_value_yet(capsys):
    def forward(x):
        print(x + 1)
        return x * 2

    assert poptorch.inferenceModel(forward)(torch.ones(3)).tolist() == [2, 2, 2]
    printed = "tensor(<unavailable>, device='ipu:0', size=(3,), dtype=torch.float32)\n"
    assert capsys.readouterr().out == printed


def test_a_boolean_mask_raises_torchs_exception_too():
    from torch._subclasses.fake_tensor import DynamicOutputShapeException

    with pytest.raises(DynamicOutputShapeException):
        compile_model(lambda x: x[x > 0], torch.ones(3))


def test_host_tensors_may_be_moved_or_read():
    table = torch.tensor([1.0, 2.0, 3.0])

    def forward(x):
        return x + table.to(x.device) + table.to("ipu") + table[1].item() + torch.zeros_like(x)

    assert poptorch.inferenceModel(forward)(torch.zeros(3)).tolist() == [4, 6, 8]


def test_an_exception_of_the_model_passes_through():
    def forward(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        compile_model(forward, torch.ones(3))
    assert not poptorch.isRunningOnIpu()


def test_values_do_not_count_while_compiling():
    model = poptorch.inferenceModel(lambda x, i: x.index_select(0, i))
    model.compile(torch.zeros(3), torch.tensor([99]))
    assert model(torch.arange(3.0), torch.tensor([2])).item() == 2


def test_python_side_effects_happen_once():
    calls = []

    def forward(x):
        calls.append(poptorch.isRunningOnIpu())
        return x + len(calls)

    model = poptorch.inferenceModel(forward, poptorch.Options().deviceIterations(2))
    assert model(torch.zeros(2)).tolist() == [1, 1]
    assert model(torch.zeros(2)).tolist() == [1, 1]
    assert calls == [True]


def test_too_many_ipus():
    options = poptorch.Options().replicationFactor(128)
    with pytest.raises(poptorch.Error, match=r"Too many IPUs requested \(128\)"):
        poptorch.inferenceModel(lambda x: x + 1, options)(torch.ones(128))


def test_floating_point_exceptions():
    cases = [
        (lambda x, y: x / y, 1.0, 0.0),
        (lambda x, y: x * y, 0.0, float("inf")),
        (lambda x, y: torch.exp(x * y), 1000.0, 10.0),
        (lambda x, y: torch.sqrt(x), -1.0, 0.0),
        (lambda x, y: x > y, 1.0, float("nan")),
    ]
    for forward, x, y in cases:
        inputs = torch.tensor([x]), torch.tensor([y])
        poptorch.inferenceModel(forward)(*inputs)
        options = poptorch.Options()
        options.Precision.enableFloatingPointExceptions(True)
        model = poptorch.inferenceModel(forward, options)
        model.compile(*inputs)
        with pytest.raises(
            poptorch.Error, match=rf"Floating-point exception.*{__file__}"
        ) as caught:
            model(*inputs)
        assert type(caught.value) is poptorch.Error  # of the program: none to recover from
        assert caught.value.type == "poplar_application_runtime_error"
        assert __file__ in caught.value.location


@pytest.mark.parametrize("ipus", [(0, 1), (2, 3), (1, 1), (0, 2)])
def test_phases_in_parallel_keep_to_ipus_of_their_kind(ipus):
    def forward(x):
        with poptorch.Block("a"):
            x = x + 1
        with poptorch.Block("b"):
            return x * 2

    strategy = poptorch.ParallelPhasedExecution("a", "b")
    for phase, ipu in enumerate(ipus):
        strategy.phase(phase).ipus(ipu)
    options = poptorch.Options()
    options.setExecutionStrategy(strategy)
    model = poptorch.inferenceModel(forward, options)
    if [ipu % 2 for ipu in ipus] == [0, 1]:
        model.compile(torch.ones(2))
    else:
        with pytest.raises(poptorch.Error, match="even phases must run on even IPUs"):
            model.compile(torch.ones(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda options: options.useIpuId(1), "targeting a specific id not supported"),
        (lambda options: options.useIpuModel(True), "not supported for the IPU model"),
        (lambda options: options.useIpuModel(False), None),
    ],
)
def test_offline_programs_are_for_no_device(change, message):
    options = poptorch.Options()
    options.useOfflineIpuTarget()
    change(options)
    model = poptorch.inferenceModel(torch.nn.ReLU(), options)
    if message is None:
        model.compile(torch.ones(2))
    else:
        with pytest.raises(poptorch.Error, match=message):
            model.compile(torch.ones(2))
