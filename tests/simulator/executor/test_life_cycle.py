"""A wrapped model's life: wrapping again, saving, loading, devices; errors and log levels."""

from __future__ import annotations

import ast
import importlib
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator import poptorch_core, schedule

pytestmark = pytest.mark.simulator


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))

    def forward(self, x, target=None):
        y = self.fc(x) * self.gain + self.offset
        return y if target is None else F.mse_loss(y, target)


X, Y = torch.randn(4, 3), torch.randn(4, 2)


def test_an_executor_can_be_wrapped_again():
    model = Model()
    training = poptorch.trainingModel(model)
    training(X, Y)
    inference = poptorch.inferenceModel(training)
    torch.testing.assert_close(inference(X), model(X).detach())
    training.destroy()
    weights = model.fc.weight.detach().clone()
    again = poptorch.trainingModel(training)
    again(X, Y)
    assert not torch.equal(model.fc.weight, weights)


def test_a_parameter_of_the_executor_is_a_parameter():
    model = Model()
    executor = poptorch.trainingModel(model)
    executor(X, Y)
    assert torch.equal(executor.gain.data, model.gain.data)
    assert executor.gain.data.item() != 1
    assert executor.model is not None
    assert callable(executor.gain.replicaGrouping)


def test_saved_weights_are_ordinary_tensors(tmp_path):
    """Loaded by a process that never imports the simulator."""
    model = Model()
    executor = poptorch.trainingModel(model)
    executor(X, Y)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    program = (
        "import sys, torch\n"
        "weights = torch.load('weights.pt', weights_only=True)\n"
        "assert all(type(w) is torch.Tensor for w in weights.values())\n"
        "print(weights['fc.bias'].tolist())\n"
        "assert not any('poptorch' in name or 'simulator' in name for name in sys.modules)\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(printed.stdout) == model.fc.bias.tolist()


#: Today's torch.load wants to be told that a file may hold classes.
WHOLE = {"weights_only": False}


def test_models_executors_and_blocks_can_be_saved_whole(tmp_path):
    model = Model()
    poptorch.BeginBlock(model.fc, "fc", ipu_id=0)
    executor = poptorch.trainingModel(model)
    torch.save(executor, tmp_path / "executor.pt")
    executor(X, Y)
    with pytest.raises(
        poptorch.Error, match=r"compiled model cannot be pickled.*destroy\(\) first"
    ):
        torch.save(executor, tmp_path / "compiled.pt")
    expected = model(X).detach()
    torch.save(model, tmp_path / "model.pt")
    torch.save(model.fc, tmp_path / "block.pt")
    loaded = torch.load(tmp_path / "model.pt", **WHOLE)
    assert type(loaded) is Model
    torch.testing.assert_close(loaded(X), expected)
    assert type(torch.load(tmp_path / "block.pt", **WHOLE)) is torch.nn.Linear
    untrained = torch.load(tmp_path / "executor.pt", **WHOLE)
    untrained(X, Y)  # trains as the one that was saved did
    torch.testing.assert_close(untrained.model(X).detach(), expected)


def test_a_file_without_the_model_serves_a_local_class(tmp_path):
    class Local(Model):
        pass

    file = str(tmp_path / "model.poptorch")
    with pytest.raises((AttributeError, pickle.PicklingError)):  # Python finds no local classes
        poptorch.inferenceModel(Local()).compileAndExport(file, X)
    poptorch.inferenceModel(Local()).compileAndExport(file, X, export_model=False)
    other = Local()
    executor = poptorch.inferenceModel(other)
    executor.loadExecutable(file)
    torch.testing.assert_close(executor(X), other(X).detach())


def test_an_offline_executable_runs_once_loaded(tmp_path):
    model = Model()
    executor = poptorch.inferenceModel(model, poptorch.Options().useOfflineIpuTarget())
    file = tmp_path / "model.poptorch"
    executor.compileAndExport(str(file), X)
    seen = []

    def edit(options):
        seen.append(options.connection_type)
        options.showCompilationProgressBar(False)

    loaded = poptorch.load(str(file), edit)
    torch.testing.assert_close(loaded(X), model(X).detach())
    assert seen == [poptorch.ConnectionType.Always]


@pytest.mark.parametrize(
    ("name", "class_name"),
    [
        ("attribute", "Attribute"),
        ("execution_strategy", "PipelinedExecution"),
        ("option_groups", "_TrainingOptions"),
        ("tensor_locations", "TensorLocationSettings"),
    ],
)
def test_files_of_earlier_versions_find_classes_that_have_moved(
    name, class_name, tmp_path, monkeypatch
):
    package = poptorch.__name__
    module = importlib.import_module(f"{package}.settings.{name}")
    cls = getattr(module, class_name)
    before = f"{package}._{name}"
    model = Model()
    file = str(tmp_path / "model.poptorch")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, before, module)
        patch.setattr(cls, "__module__", before)
        options = poptorch.Options()
        options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
        options.TensorLocations.setWeightLocation(poptorch.TensorLocationSettings())
        poptorch.inferenceModel(model, options.deviceIterations(1)).compileAndExport(file, X)
    assert before not in sys.modules
    torch.testing.assert_close(poptorch.load(file)(X), model(X).detach())


def test_weights_given_to_the_executor_reach_the_device():
    executor = poptorch.inferenceModel(Model())
    executor(X)
    other = Model()
    executor.load_state_dict(other.state_dict())
    torch.testing.assert_close(executor(X), other(X).detach())


def test_named_buffers_must_have_been_named():
    executor = poptorch.inferenceModel(Model())
    executor(X)
    with pytest.raises(poptorch.Error, match="updatableNamedBuffers"):
        executor.copyNamedBuffersToDevice()


def test_a_buffer_may_be_added_to_but_not_replaced():
    class Counts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.norm = torch.nn.BatchNorm1d(3, momentum=1.0)  # rebinds its own buffer: allowed

        def forward(self, x):
            self.count += 1
            self.count.copy_(self.count * 2)
            return self.norm(x)

    model = Counts()
    executor = poptorch.inferenceModel(model.train())
    executor(X)
    executor(X)
    executor.copyWeightsToHost()
    assert model.count == 6
    assert model.norm.num_batches_tracked == 0  # an integer: JitDispatch.cpp:111
    torch.testing.assert_close(model.norm.running_mean, X.mean(0))


def test_destroying_forgets_the_tensor_names():
    executor = poptorch.inferenceModel(Model())
    executor(X)
    executor.getTensorNames()
    executor.destroy()
    with pytest.raises(AssertionError, match="must be compiled"):
        executor.getTensorNames()


def test_a_model_without_a_connection_compiles_but_does_not_run():
    options = poptorch.Options().connectionType(poptorch.ConnectionType.Never)
    executor = poptorch.inferenceModel(Model(), options)
    executor.compile(X)
    with pytest.raises(AssertionError, match="Trying to run a model on an offline device"):
        executor(X)


def test_cycles_are_counted_by_hardware_only(monkeypatch):
    monkeypatch.delenv("POPTORCH_SIM_HARDWARE", raising=False)
    executor = poptorch.inferenceModel(Model(), poptorch.Options().logCycleCount(True))
    with pytest.raises(poptorch.Error, match="only supported on actual IPU hardware"):
        executor(X)


def test_one_ipu_is_no_pipeline():
    """Two blocks on one IPU: neither accumulation nor device iterations have to fill anything."""
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    poptorch.BeginBlock(layers[0], "a", ipu_id=0)
    poptorch.BeginBlock(layers[1], "b", ipu_id=0)
    assert poptorch.inferenceModel(layers)(X).shape == (4, 2)
    options = poptorch.Options().deviceIterations(1)
    options.setExecutionStrategy(poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement))
    assert poptorch.inferenceModel(layers, options)(X).shape == (4, 2)


def test_a_block_goes_on_until_the_next_begins():
    class Blocks(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
            poptorch.BeginBlock(self.a, "a", ipu_id=1)
            poptorch.BeginBlock(self.b, "b", ipu_id=2)

        def forward(self, x):
            return torch.tanh(self.b(torch.relu(self.a(torch.sin(x)))))

    options = poptorch.Options().deviceIterations(4).autoRoundNumIPUs(True)
    executor = poptorch.inferenceModel(Blocks(), options)
    executor.compile(X)
    stages = {o.name: o.ipus for o in schedule.operators(executor) if "mm" not in o.name}
    assert [stages[name] for name in ("sin", "relu", "tanh")] == [(0,), (1,), (2,)]


def test_names_that_other_programs_reach_for():
    """Not in PopTorch's documentation, but in its own tests' helpers and in people's programs."""
    from ipu_proxynorm.simulator import _impl, _logging
    from ipu_proxynorm.simulator import poptorch_core as core

    assert core.TestErrorType.Poptorch.name == "Poptorch"
    assert core.isCompilingWithDispatcher() is False
    assert _impl.isDispatchTracing() is False
    _logging.setPopartLogLevel("DEBUG")
    options = poptorch.Options()
    assert isinstance(options._execution_strategy, poptorch.PipelinedExecution)
    core._validateOptions(options.clone().outputMode(poptorch.OutputMode.All).toDict())
    options._Popart.set("noSuchThing", True)
    assert options._Popart.options["noSuchThing"] is True
    with pytest.raises(poptorch.Error, match="Unknown bool option noSuchThing"):
        core._validateOptions(options.outputMode(poptorch.OutputMode.All).toDict())
    # Compiling hands them over likewise: python/poptorch.cpp:516.
    with pytest.raises(poptorch.Error, match="Unknown bool option noSuchThing"):
        poptorch.inferenceModel(torch.nn.ReLU(), options)(torch.ones(2))
    optimizer = poptorch.optim.SGD(Model().parameters(), lr=0.1)
    assert "lr" in optimizer.variable_attrs._variable_attributes
    assert "momentum" in optimizer.variable_attrs._allowed_attributes


def test_log_levels():
    level = poptorch._logging.logger.level
    try:
        for name in ("TRACE", "DEBUG", "INFO", "WARN", "ERR", "OFF", 0, 1, 2, 3, 4, 6):
            poptorch.setLogLevel(name)
        with pytest.raises(ValueError, match="Invalid log level integer"):
            poptorch.setLogLevel(5)
        with pytest.raises(
            ValueError, match=r"wibble\. Valid values are DEBUG, ERR, INFO, OFF, TRAC"
        ):
            poptorch.setLogLevel("wibble")
    finally:
        poptorch._logging.logger.setLevel(level)


def test_errors_that_python_makes_say_so():
    with pytest.raises(poptorch.Error) as caught:
        poptorch.inferenceModel(Model(), "options")
    error = caught.value
    assert error.type == "poptorch_py_error"
    assert str(error).startswith("'poptorch_py_error': ")
    assert str(error) == f"'{error.type}': {error.message}"
    for kind in (poptorch_core.RecoverableError, poptorch_core.UnrecoverableError):
        assert issubclass(kind, poptorch.Error)


def test_what_moves_between_host_and_device_is_logged(caplog):
    model = Model()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    executor = poptorch.trainingModel(model, None, optimizer)
    with caplog.at_level("DEBUG", logger="poptorch::python"):
        executor(X, torch.zeros(4, 2))
        assert "Writing weights from host to IPU memory." in caplog.messages
        caplog.clear()
        executor(X, torch.zeros(4, 2))
        assert not [each for each in caplog.messages if "Writing" in each or "seed" in each]
        executor.detachFromDevice()
    for what in ("weights", "optimiser state tensors"):
        assert f"Writing {what} from IPU to host." in caplog.messages
    assert {"Reading random seed", "Reading RNG state"} <= set(caplog.messages)
    assert caplog.messages[-1] == "Detached from device 0"


def test_there_is_no_representation_of_popart():
    executor = poptorch.inferenceModel(Model())
    with pytest.raises(poptorch.Error, match=r"no PopART.*schedule\.operators"):
        executor._debugGetPopartIR()
