"""The rest of a wrapped model: devices, files, anchors, counters, options."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)

    def forward(self, x, target=None):
        y = self.fc(x)
        return y if target is None else F.mse_loss(y, target)


X, Y = torch.randn(4, 3), torch.randn(4, 2)


def test_options_are_checked_and_frozen():
    with pytest.raises(poptorch.Error, match=r"Expected poptorch.Options"):
        poptorch.inferenceModel(Model(), "options")
    options = poptorch.Options()
    model = poptorch.inferenceModel(Model(), options)
    for frozen in (options, model.options):
        with pytest.raises(AttributeError, match="frozen"):
            frozen.deviceIterations(2)
    assert options.output_mode == poptorch.OutputMode.Default
    assert model.options.output_mode == poptorch.OutputMode.All


def test_attributes_of_the_model_are_the_executors():
    model = Model()
    executor = poptorch.inferenceModel(model)
    assert executor.fc.in_features == 3
    assert list(dict(executor.named_parameters())) == ["fc.weight", "fc.bias"]
    with pytest.raises(AttributeError):
        _ = executor.nothing


def test_others_can_tell_whether_there_is_an_executable():
    executor = poptorch.inferenceModel(torch.nn.Linear(2, 2))
    assert executor._executable is None
    executor(torch.zeros(1, 2))
    assert executor._executable is not None
    executor.destroy()
    assert executor._executable is None


def test_detaching_and_attaching():
    executor = poptorch.trainingModel(Model())
    with pytest.raises(poptorch.Error, match="has not been compiled"):
        executor.detachFromDevice()
    first = executor(X, Y)
    with pytest.raises(poptorch.Error, match="already attached"):
        executor.attachToDevice()
    executor.detachFromDevice()
    assert not executor.isAttachedToDevice()
    with pytest.raises(poptorch.Error, match="Device is not attached"):
        executor.detachFromDevice()
    assert executor(X, Y) < first
    assert executor.isAttachedToDevice()


def test_an_ipu_belongs_to_one_model_at_a_time():
    options = poptorch.Options().useIpuId(1)
    one, two = (poptorch.inferenceModel(Model(), options) for _ in range(2))
    one(X)
    with pytest.raises(poptorch.Error, match="Failed to acquire device Id 1"):
        two(X)
    one.detachFromDevice()
    two(X)
    two.destroy()
    one(X)
    one.destroy()


def test_an_offline_target_compiles_but_does_not_run():
    executor = poptorch.inferenceModel(Model(), poptorch.Options().useOfflineIpuTarget())
    executor.compile(X)
    with pytest.raises(AssertionError, match="Trying to run a model on an offline device"):
        executor(X)


def test_files(tmp_path):
    model = Model()
    executor = poptorch.trainingModel(model)
    loss = executor(X, Y)
    executor.save(str(tmp_path / "model.poptorch"))
    loaded = poptorch.load(str(tmp_path / "model.poptorch"))
    assert loaded(X, Y) < loss
    assert torch.equal(loaded(X, Y), (executor(X, Y), executor(X, Y))[1])

    inference = poptorch.inferenceModel(Model())
    inference.compileAndExport(str(tmp_path), X, export_model=False)
    file = str(tmp_path / "model.poptorch")
    with pytest.raises(AssertionError, match="export_model=False"):
        poptorch.load(file)
    fresh = Model()
    other = poptorch.inferenceModel(fresh)
    other.loadExecutable(file)
    torch.testing.assert_close(other(X), fresh(X))
    (tmp_path / "text").write_text("no program")
    with pytest.raises(poptorch.Error, match="Invalid file"):
        other.loadExecutable(str(tmp_path / "text"))


def test_anchored_tensors_are_gradients_and_updated_weights():
    model = Model()
    options = poptorch.Options().deviceIterations(2)
    options.anchorTensor("gradient", "Gradient___fc.bias", poptorch.OutputMode.All)
    options.anchorTensor("weight", "UpdatedVar___fc.weight")
    options.anchorTensor("itself", "fc.weight")
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=0.5))
    reference = Model()
    reference.load_state_dict(model.state_dict())
    executor(X, Y)
    expected = []
    for x, y in zip(X.split(2), Y.split(2)):
        reference.zero_grad()
        reference(x, y).backward()
        expected.append(reference.fc.bias.grad.clone())
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= 0.5 * parameter.grad
    torch.testing.assert_close(executor.getAnchoredTensor("gradient"), torch.cat(expected))
    for name in ("weight", "itself"):
        torch.testing.assert_close(executor.getAnchoredTensor(name), reference.fc.weight.detach())
    with pytest.raises(AssertionError, match="No tensor with name other found"):
        executor.getAnchoredTensor("other")


def test_a_weight_is_anchored_in_each_micro_batch_only_without_accumulation():
    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    options.anchorTensor("weight", "fc.weight", poptorch.OutputMode.All)
    executor = poptorch.trainingModel(Model(), options)
    with pytest.raises(poptorch.Error, match="All and 2 gradient accumulation steps"):
        executor(X, Y)


def test_modules_of_torch_fx_run_and_train():
    class Squares(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = torch.nn.Linear(3, 2)

        def forward(self, x, y):
            out = self.fc(x)
            return out, torch.nn.functional.mse_loss(out, y)

    graph = torch.fx.symbolic_trace(Squares())
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.5)
    reference = copy.deepcopy(graph)
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    expected, loss = reference(x, y)
    torch.testing.assert_close(poptorch.inferenceModel(graph)(x, y)[0], expected.detach())
    poptorch.trainingModel(graph, optimizer=optimizer)(x, y)
    loss.backward()
    weight = (reference.fc.weight - 0.5 * reference.fc.weight.grad).detach()
    torch.testing.assert_close(graph.fc.weight.detach(), weight)


def test_tensor_names_need_a_compiled_model():
    executor = poptorch.trainingModel(Model())
    with pytest.raises(AssertionError, match="must be compiled"):
        executor.getTensorNames()
    executor.compile(X, Y)
    names = executor.getTensorNames()
    assert {"input", "input/1", "fc.weight", "Gradient___fc.bias", "loss"} <= set(names)


def test_counters_have_a_time_for_each_micro_batch_moved():
    options = poptorch.Options().deviceIterations(2).replicationFactor(2)
    options.outputMode(poptorch.OutputMode.Final)
    executor = poptorch.inferenceModel(Model(), options)
    assert executor.getPerfCounters()["input"] == [[]]
    executor(X)
    counters = executor.getPerfCounters()
    assert [len(times) for times in counters["input"]] == [4]
    assert [len(times) for times in counters["output"]] == [2]
    low, high, mean = executor.getLatency()
    assert 0 < low <= mean <= high


def test_replicas_may_have_weights_of_their_own():
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor([[1.0], [10.0]]))

        def forward(self, x):
            y = self.weight * x
            return y, poptorch.identity_loss(y, "sum")

    model = Scale()
    options = poptorch.Options().replicationFactor(2).outputMode(poptorch.OutputMode.All)
    executor = poptorch.trainingModel(model, options, torch.optim.SGD(model.parameters(), lr=1.0))
    executor.weight.replicaGrouping(
        poptorch.CommGroupType.NoGrouping, 0, poptorch.VariableRetrievalMode.OnePerGroup
    )
    y, _ = executor(torch.tensor([2.0, 3.0]))
    assert y.tolist() == [2, 30]
    assert model.weight.tolist() == [[0.0], [8.5]]


def test_hardware_is_there_when_asked_for(monkeypatch):
    monkeypatch.delenv("POPTORCH_SIM_HARDWARE", raising=False)
    assert not poptorch.ipuHardwareIsAvailable()
    with pytest.raises(AssertionError, match="No IPU hardware available"):
        poptorch.ipuHardwareVersion()
    monkeypatch.setenv("POPTORCH_SIM_HARDWARE", "1")
    assert poptorch.ipuHardwareIsAvailable(64)
    assert not poptorch.ipuHardwareIsAvailable(128)
    assert poptorch.ipuHardwareVersion() == 2


def test_ipus_are_reserved_by_powers_of_2(monkeypatch):
    """Unless they are the IPU Model's, or none: popart_compiler/source/CompilerImpl.cpp:688-712."""
    for name in ("POPTORCH_SIM_HARDWARE", "POPTORCH_IPU_MODEL"):
        monkeypatch.delenv(name, raising=False)

    def run(options):
        return poptorch.inferenceModel(Model(), options.replicationFactor(3))(torch.ones(3, 3))

    with pytest.raises(poptorch.Error, match=r"the use of 3 IPUs.* reserve a minimum of 4"):
        run(poptorch.Options())
    run(poptorch.Options().autoRoundNumIPUs(True))
    run(poptorch.Options().useIpuModel(True))
    offline = poptorch.Options().useOfflineIpuTarget().replicationFactor(3)
    poptorch.inferenceModel(Model(), offline).compile(torch.ones(3, 3))
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")
    run(poptorch.Options())
    with pytest.raises(poptorch.Error, match=r"the use of 3 IPUs"):
        run(poptorch.Options().useIpuModel(False))  # wins over the environment


def test_compile_hooks_run_in_order():
    calls = []
    handles = [
        poptorch.registerPreCompileHook(lambda: calls.append("before")),
        poptorch.registerPostCompileHook(lambda: calls.append("after")),
    ]
    poptorch.inferenceModel(Model()).compile(X)
    for handle in handles:
        handle.remove()
    poptorch.inferenceModel(Model()).compile(X)
    assert calls == ["before", "after"]
    with pytest.raises(RuntimeError, match="must be callable"):
        poptorch.registerPreCompileHook(1)
