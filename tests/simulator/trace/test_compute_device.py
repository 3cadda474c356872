"""Programs for another torch device than the CPU, as far as this can be shown without one.

`meta` tensors have shapes and no values, torch's fake tensors also a device that they insist on: so
every tensor of a program, and everything around it, is seen to be where it should. Values on a GPU
are not seen here.
"""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.ipu import Classification
from ipu_proxynorm.models import create_model
from ipu_proxynorm.simulator import _poplar_executor
from ipu_proxynorm.simulator.device.device import Device
from ipu_proxynorm.simulator.optimizer.device_optimizer import DeviceOptimizer
from ipu_proxynorm.simulator.trace import compute_device
from ipu_proxynorm.simulator.trace.arithmetic.dtypes import demoted
from ipu_proxynorm.simulator.trace.compute_device import HOST, VARIABLE, moved
from ipu_proxynorm.simulator.trace.optimize import passes
from ipu_proxynorm.simulator.trace.tape import (
    Block,
    Operation,
    Origin,
    Slot,
    operations_in,
    to_function,
)

pytestmark = pytest.mark.simulator
META = torch.device("meta")


class Network(torch.nn.Module):
    """A bit of everything: layers, a constant, tensors made in `forward`, random numbers."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4, 5)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, images, labels):
        """Return the loss of (N, 3, H, W) uint8 images and (N,) labels."""
        x = (images.float() - torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)) / 255
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        x = x + torch.arange(4) + torch.zeros(len(x), 4) + torch.ones(4, device=x.device)
        x = torch.nn.functional.dropout(x, 0.5) * torch.rand(4) + torch.ones_like(x)
        logits = self.fc(x.half().float()) * self.scale
        return logits, torch.nn.functional.cross_entropy(logits, labels)


BATCH = (torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8) % 5)


def options(**popart):
    chosen = poptorch.Options().replicationFactor(2).randomSeed(3)
    chosen.Training.gradientAccumulation(2)
    chosen.outputMode(poptorch.OutputMode.All).broadcastBuffers(False)
    for key, value in popart.items():
        chosen._Popart.set(key, value)
    return chosen


def trained(model=None, **popart):
    """Return the executor after three steps, and its outputs."""
    torch.manual_seed(5)
    model = model or Network()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    executor = poptorch.trainingModel(model, options(**popart), optimizer)
    return executor, [executor(*BATCH) for _ in range(3)]


class Compiled(Exception):
    """Stops a model that has been compiled before its device is made."""


def compiled_for(monkeypatch, device, model, **popart):
    """Return the arguments of the `Device` on which a training model would run."""

    def stop(*arguments):
        raise Compiled(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(compute_device, "chosen", lambda: device)
        patch.setattr(_poplar_executor, "Device", stop)
        chosen = options(**popart)
        chosen.anchorTensor("gradient", "Gradient___fc.weight")
        executor = poptorch.trainingModel(model, chosen)
        with pytest.raises(Compiled) as caught:
            executor.compile(*BATCH)
    return caught.value.args


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("tpu", 0, r"POPTORCH_SIM_DEVICE=tpu: the simulator computes on cpu, cuda or cuda:<num"),
        ("mps", 0, r"POPTORCH_SIM_DEVICE=mps: the simulator computes on cpu, cuda or cuda:<num"),
        ("cuda", 0, r"POPTORCH_SIM_DEVICE=cuda: torch \S+ sees none; unset POPTORCH_SIM_DEVICE"),
        ("cuda:2", 2, r"POPTORCH_SIM_DEVICE=cuda:2: torch \S+ sees 2 of them; unset"),
    ],
)
def test_a_device_that_is_not_there_is_one_error(monkeypatch, name, gpus, message):
    monkeypatch.setenv(VARIABLE, name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    executor = poptorch.inferenceModel(torch.nn.Linear(2, 2))
    with pytest.raises(poptorch.Error, match=message) as caught:
        executor(torch.zeros(1, 2))
    assert "\n" not in str(caught.value)
    assert not executor.isCompiled()


@pytest.mark.parametrize(("name", "expected"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0")])
def test_the_gpu_that_is_chosen(monkeypatch, name, expected):
    monkeypatch.setenv(VARIABLE, name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert compute_device.chosen() == torch.device(expected)


def test_the_cpu_is_what_computes_unasked(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert compute_device.chosen() == HOST
    unasked, expected = trained()
    monkeypatch.setenv(VARIABLE, "cpu")
    asked, found = trained()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for name, value in unasked.model.state_dict().items():
        assert torch.equal(asked.model.state_dict()[name], value), name


class OnlyOn(TorchDispatchMode):
    """Refuses tensors of any other device."""

    def __init__(self, device):
        super().__init__()
        self.device = device
        self.calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_flatten((args, kwargs, result))[0]:
            if isinstance(tensor, torch.Tensor):
                assert tensor.device == self.device, f"{func}: {tensor.device}"
        self.calls += 1
        return result


def test_every_tensor_of_a_program_is_on_its_device(monkeypatch):
    model = Network()
    program, *_ = compiled_for(monkeypatch, META, Network())
    assert program.random
    state = [
        tensor
        for tensor in [*model.parameters(), *model.buffers()]
        if tensor.dtype.is_floating_point
    ]
    tensors = [*state, BATCH[0][:2], BATCH[1][:2], torch.ones(())]
    inputs = [demoted(tensor.detach()).to(META) for tensor in tensors]
    with OnlyOn(META) as mode, torch.no_grad():
        results = program.run(*inputs)
    assert mode.calls > 40
    shapes = [(2, 5), (), *(tuple(p.shape) for p in model.parameters())]
    assert [tuple(result.shape) for result in results] == shapes


def fake_gpu():
    """Return torch's mode of fake tensors, if it has any of a GPU here."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with mode:
            torch.empty(2, device="cuda:0").add(1)
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__} fakes no GPU where there is none ({error})")
    return mode


@pytest.mark.parametrize("rounding", [False, True])
def test_training_on_a_gpu_of_fake_tensors(monkeypatch, rounding):
    mode, cuda = fake_gpu(), torch.device("cuda:0")
    for name, stand_in in (
        ("sent", lambda constants, device: constants),
        ("random_state", lambda device: torch.zeros(16)),
        ("set_random_state", lambda state, device: None),
        ("generator_state", lambda seed, device: torch.zeros(16)),
    ):
        monkeypatch.setattr(compute_device, name, stand_in)
    model = Network()
    popart = {"enableStochasticRounding": rounding}
    program, chosen, groups, seed = compiled_for(monkeypatch, cuda, Network(), **popart)
    block, slots, count, constants, _ = program.make_executable.args  # not called yet
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, loss_scaling=4.0)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    with mode:
        constants = {slot: constant.to(cuda) for slot, constant in constants.items()}
        program.executable = passes.executable(block, slots, count, constants, cuda)
        device = Device(program, chosen, groups, seed)
        device.load(parameters, buffers)
        device.optimizer = DeviceOptimizer(
            optimizer, device.parameters, chosen, host_parameters=parameters
        )
        for _ in range(2):
            outputs = device.run(BATCH)
        device.store(parameters, buffers)
        state = device.optimizer.ipu_state()
    assert [(tuple(output.shape), output.device) for output in outputs] == [
        ((8, 5), HOST),
        ((4,), HOST),
    ]
    assert device.anchors["gradient"].device == HOST
    assert {
        value.device for value in [*device.parameters.values(), *device._buffers[1].values()]
    } == {cuda}
    assert {t.device for s in device.optimizer._state.values() for t in s.values()} == {cuda}
    assert len(state) > 4
    assert {value.device for value in state.values()} == {HOST}


NETWORKS = [("resnetv2_8", "gn4+pn"), ("resnet8", "bn"), ("efficientnet_b0", "ln+pn+ws")]


@pytest.mark.parametrize(("name", "norm"), NETWORKS)
@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this build of torch has no kernels")
def test_a_gpu_has_every_operator_of_our_networks(name, norm):
    network = create_model(name, norm, 5, shallow=True).half()
    program = Classification(network, (0.5,) * 3, (0.25,) * 3, 0.1, None, torch.float16)
    executor = poptorch.trainingModel(program, options())
    images = torch.zeros(8, 3, 32, 32, dtype=torch.uint8)
    executor.compile(images, BATCH[1])
    operators = {
        step.function._schema
        for step in operations_in(executor._device.program.block)
        if hasattr(step.function, "_schema")
    }
    assert len(operators) > 20
    for schema in operators:
        full_name = f"{schema.name}.{schema.overload_name}".rstrip(".")
        assert any(
            torch._C._dispatch_has_kernel_for_dispatch_key(full_name, key)
            for key in ("CUDA", "CompositeExplicitAutograd", "CompositeImplicitAutograd")
        ), full_name


def test_functions_of_the_host_get_copies_and_give_back_tensors_of_the_device():
    seen = []

    def function(x, scale):
        seen.append((x.device, scale))
        return [torch.ones(x.shape), 3]

    call = Operation(
        function, [Slot(0)], {"scale": 2}, [Slot(1), None], Origin("", 0, 0, 0, 0, False)
    )
    block = moved(Block([call], [Slot(1)]), META)
    (result,) = to_function(block, [Slot(0)], {})(torch.zeros(2, 3))
    assert seen == [(HOST, 2)]
    assert (result.device, result.shape) == (META, (2, 3))


def test_loops_and_branches_make_their_tensors_on_the_device(monkeypatch):
    def forward(x, flag):
        (x,) = poptorch.for_loop(3, lambda y: y + torch.arange(2), [x])
        return poptorch.cond(
            flag, lambda y: y + torch.ones(2), [x], lambda y: y * torch.rand(2), [x]
        )

    model = poptorch.inferenceModel(forward)
    model.compile(torch.zeros(2), torch.tensor(True))
    block = moved(model._device.program.block, META)
    made = [step for step in operations_in(block) if step.name in ("arange", "ones", "rand")]
    assert {step.name for step in made} == {"arange", "ones", "rand"}
    assert {step.kwargs["device"] for step in made} == {META}


def test_products_are_float32_meanwhile():
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with compute_device.float32_products():
        assert not torch.backends.cudnn.allow_tf32
        assert not torch.backends.cuda.matmul.allow_tf32
    assert before == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)


def test_a_random_state_of_another_device_is_refused():
    executor, _ = trained()
    state = executor.rng_state
    with pytest.raises(poptorch.Error, match=r"2 replicas on cpu has \d+: it belongs to another"):
        executor.rng_state = state[:9]
    executor.rng_state = state
    assert executor.rng_state == state
