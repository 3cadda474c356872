"""Weights have a copy on the host and one on the device; looking at the host's fetches."""

from __future__ import annotations

import copy
import gc
import io
import types

import pytest
import torch

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x, target=None):
        self.seen += 1
        y = self.linear(x)
        return y if target is None else (y, torch.nn.functional.mse_loss(y, target))


@pytest.fixture
def trained():
    """A trained model, its executor, and the copies to the host counted in a list."""
    model = Model()
    executor = poptorch.trainingModel(model)
    copies = []
    fetch = executor.copyWeightsToHost

    def counting(self):
        copies.append(1)
        fetch()

    executor.copyWeightsToHost = types.MethodType(counting, executor)
    train = lambda: executor(torch.ones(3), torch.zeros(2))  # noqa: E731
    train()
    return model, executor, copies, train


LOOKS = {
    "parameters": lambda model: next(iter(model.parameters())) + 0,
    "state_dict": lambda model: model.state_dict(),
    "data": lambda model: model.linear.weight.data,
    "equal": lambda model: torch.equal(torch.zeros(2, 3), model.linear.weight),
    "equal reversed": lambda model: torch.equal(model.linear.weight, torch.zeros(2, 3)),
    "call": lambda model: model(torch.ones(3)),
    "forward": lambda model: model.forward(torch.ones(3)),
    "_parameters": lambda model: model._parameters,
    "_buffers": lambda model: model._buffers,
    "buffer": lambda model: model.seen + 0,
}


@pytest.mark.parametrize("look", LOOKS)
def test_a_look_fetches_exactly_once(trained, look):
    model, _, copies, train = trained
    train()
    assert copies == []
    LOOKS[look](model)
    assert copies == [1]
    LOOKS[look](model)
    assert copies == [1]


def test_inference_sees_what_training_did(trained):
    model, _, copies, train = trained
    inference = poptorch.inferenceModel(model)
    first = inference(torch.ones(3))
    train()
    second = inference(torch.ones(3))
    assert not torch.equal(first, second)
    assert len(copies) == 2
    torch.testing.assert_close(second, model(torch.ones(3)))


def test_training_on_the_host_does_not_reach_the_device():
    model = Model()
    inference = poptorch.inferenceModel(model)
    before = inference(torch.ones(3))
    with torch.no_grad():
        model.linear.weight.add_(1)
    assert torch.equal(inference(torch.ones(3)), before)
    inference.copyWeightsToDevice()
    assert not torch.equal(inference(torch.ones(3)), before)


def test_uploading_stale_weights_loses_the_training():
    model = Model()
    before = copy.deepcopy(model.state_dict())
    executor = poptorch.trainingModel(model)
    executor(torch.ones(3), torch.zeros(2))
    executor.copyWeightsToDevice()
    assert torch.equal(model.linear.weight, before["linear.weight"])


def test_weights_need_a_compiled_model(trained):
    model, executor, _, _ = trained
    executor.destroy()
    for call in (executor.copyWeightsToHost, executor.copyWeightsToDevice):
        with pytest.raises(poptorch.Error, match="Model has not been compiled or has been destroy"):
            call()
    assert type(model) is Model
    assert type(model.linear.weight) is torch.nn.Parameter


def test_weights_need_a_compiled_model_from_the_start():
    executor = poptorch.trainingModel(Model())
    for call in (
        executor.copyWeightsToHost,
        executor.copyWeightsToDevice,
        executor.copyNamedBuffersToDevice,
    ):
        with pytest.raises(poptorch.Error, match="Model has not been compiled or has been destroy"):
            call()


def test_a_wrapped_model_is_still_of_its_class(trained):
    model, executor, _, _ = trained
    assert type(model) is not Model
    assert isinstance(model, Model)
    assert executor.model is model
    assert [name for name, _ in model.named_parameters()] == ["linear.weight", "linear.bias"]


def test_detaching_brings_the_weights_home(trained):
    model, executor, copies, train = trained
    before = model.linear.weight.detach().clone()
    train()
    copies.clear()
    executor.detachFromDevice()
    assert copies == [1]
    assert not torch.equal(model.linear.weight, before)
    assert copies == [1]


def test_weights_outlive_their_executor():
    model, reference = Model(), Model()
    reference.load_state_dict(model.state_dict())
    poptorch.trainingModel(model)(torch.ones(3), torch.zeros(2))
    gc.collect()
    reference(torch.ones(3), torch.zeros(2))[1].backward()
    expected = reference.linear.weight.detach() - 0.01 * reference.linear.weight.grad
    torch.testing.assert_close(model.linear.weight.detach(), expected)
    with pytest.raises(RuntimeError, match="Model has already been wrapped"):
        poptorch.trainingModel(model)
    model.destroy()
    assert type(model) is Model
    assert type(model.linear.weight) is torch.nn.Parameter
    poptorch.trainingModel(model)


def test_wrapping_twice_is_refused_until_destroyed(trained):
    model, _, _, _ = trained
    with pytest.raises(RuntimeError, match="Model has already been wrapped"):
        poptorch.trainingModel(model)
    weights = model.linear.weight.detach().clone()
    model.destroy()
    assert torch.equal(model.linear.weight, weights)
    poptorch.trainingModel(model)


def test_a_trained_model_saves_as_an_ordinary_one(trained):
    model, _, _, train = trained
    train()
    file = io.BytesIO()
    torch.save(model.linear.weight, file)
    torch.save(model.state_dict(), file)
    duplicate = copy.deepcopy(model)
    assert type(duplicate) is Model
    assert type(duplicate.linear.weight) is torch.nn.Parameter
    assert torch.equal(duplicate.linear.weight, model.linear.weight)
    assert all(type(value) is torch.Tensor for value in model.state_dict().values())


def test_tied_parameters_stay_tied():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return poptorch.identity_loss(self.b(self.a(x)), "sum")

    model = Tied()
    reference = copy.deepcopy(model)
    reference(torch.ones(1, 2)).backward()
    expected = reference.a.weight.detach() - 0.01 * reference.a.weight.grad
    executor = poptorch.trainingModel(model)
    executor(torch.ones(1, 2))
    assert model.a.weight is model.b.weight
    torch.testing.assert_close(model.a.weight.detach(), expected)
    executor.detachFromDevice()
    executor.attachToDevice()
    executor(torch.ones(1, 2))
    assert model.a.weight is model.b.weight
    assert not torch.equal(model.a.weight.detach(), expected)


def test_rebinding_or_deleting_a_buffer_is_refused():
    def rebind(self, x):
        self.seen = x.sum()
        return x

    def delete(self, x):
        del self._buffers["seen"]
        return x

    for forward, message in ((rebind, "reassigned within"), (delete, "removed from the model")):
        model = Model()
        model.forward = types.MethodType(forward, model)
        with pytest.raises(poptorch.Error, match=f"Buffer seen is {message}"):
            poptorch.inferenceModel(model)(torch.ones(3))
        assert model.seen.item() == 0


def test_buffers_live_on_the_device():
    model = Model()
    executor = poptorch.inferenceModel(model)
    executor(torch.ones(3))
    executor(torch.ones(3))
    assert model.seen == 0
    executor.copyWeightsToHost()
    assert model.seen == 2


def test_written_buffers_need_broadcasting_off():
    options = poptorch.Options().replicationFactor(2)
    with pytest.raises(poptorch.Error, match="does not support broadcasting buffers"):
        poptorch.inferenceModel(Model(), options)(torch.ones(2, 3))
    options = poptorch.Options().replicationFactor(2).broadcastBuffers(False)
    poptorch.inferenceModel(Model(), options)(torch.ones(2, 3))


def test_named_buffers_alone():
    model = Model()
    options = poptorch.Options().updatableNamedBuffers(["seen"])
    executor = poptorch.inferenceModel(model, options)
    executor(torch.ones(3))
    before = model.linear.weight.detach().clone()
    with torch.no_grad():
        model.seen.fill_(10)
        model.linear.weight.add_(1)
    executor.copyNamedBuffersToDevice()
    executor(torch.ones(3))
    executor.copyWeightsToHost()
    assert model.seen == 11
    assert torch.equal(model.linear.weight, before)  # which stayed on the device
    options = poptorch.Options().updatableNamedBuffers(["nothing"])
    with pytest.raises(poptorch.Error, match="the model has no buffer nothing"):
        poptorch.inferenceModel(model, options)(torch.ones(3))
