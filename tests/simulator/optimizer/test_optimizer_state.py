"""The optimiser of a wrapped model: what reaches the device when, and what comes back."""

from __future__ import annotations

import copy

import pytest
import torch

import ipu_proxynorm.simulator as poptorch

pytestmark = pytest.mark.simulator

OPTIMIZERS = [
    poptorch.optim.SGD,
    poptorch.optim.Adam,
    poptorch.optim.AdamW,
    poptorch.optim.RMSprop,
    poptorch.optim.LAMB,
]


class Regression(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = torch.nn.Linear(3, 1)

    def forward(self, x):
        return poptorch.identity_loss(self.lin(x), "sum")


X = torch.tensor([[1.0, 2.0, 3.0]])


def weight(model):
    return model.lin.weight.detach().clone()


@pytest.mark.parametrize("cls", [torch.optim.SGD, poptorch.optim.SGD])
def test_changed_values_wait_for_set_optimizer(cls):
    model = Regression()
    optimizer = cls(model.parameters(), lr=0.0)
    trainer = poptorch.trainingModel(model, optimizer=optimizer)
    start = weight(model)
    trainer(X)
    optimizer.param_groups[0]["lr"] = 0.5
    trainer(X)
    assert torch.equal(weight(model), start)
    trainer.setOptimizer(optimizer)
    trainer(X)
    torch.testing.assert_close(weight(model), start - 0.5 * X)


def test_schedulers_and_loss_scaling_take_effect_with_set_optimizer():
    model = Regression()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.5, loss_scaling=2.0)
    scheduler = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda epoch: 0.1)
    options = poptorch.Options()
    options.anchorTensor("gradient", "Gradient___lin.weight")
    trainer = poptorch.trainingModel(model, options, optimizer)
    start = weight(model)
    trainer(X)
    torch.testing.assert_close(weight(model), start - 0.5 * X)
    optimizer.step()  # only torch wants it: there are no gradients on the host
    scheduler.step()
    optimizer.loss_scaling = 8.0
    for set_first, lr, scaling in ((False, 0.5, 2.0), (True, 0.05, 8.0)):
        if set_first:
            trainer.setOptimizer(optimizer)
        before = weight(model)
        trainer(X)
        torch.testing.assert_close(before - weight(model), lr * X)
        torch.testing.assert_close(trainer.getAnchoredTensor("gradient"), scaling * X)


def test_set_optimizer_before_compiling_takes_the_values_of_that_moment():
    model = Regression()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.25)
    trainer = poptorch.trainingModel(model, optimizer=optimizer)
    start = weight(model)
    optimizer.param_groups[0]["lr"] = 100.0
    trainer(X)
    torch.testing.assert_close(weight(model), start - 0.25 * X)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_state_is_none_before_compiling_and_tensors_after(cls):
    model = Regression()
    optimizer = cls(model.parameters(), lr=0.1, weight_decay=0.2, loss_scaling=0.75)
    trainer = poptorch.trainingModel(model, optimizer=optimizer)
    before = optimizer.state_dict()
    assert before["ipu_state"] is None
    assert before["ipu_param"] is None
    trainer.compile(X)
    compiled = optimizer.state_dict()
    assert set(torch.optim.Optimizer.state_dict(optimizer)) < set(compiled)
    params = compiled["ipu_param"]
    assert params["lossScaling_FLOAT"] == pytest.approx(0.75)
    if cls is poptorch.optim.SGD:
        assert params["scaledLearningRate0___specific___lin.weight"] == pytest.approx(0.1 / 0.75)
        assert params["weightDecayScaleFactor0___specific___lin.bias"] == pytest.approx(0.98)
        assert compiled["ipu_state"] == {}
        return
    assert params["learningRate___specific___lin.weight"] == pytest.approx(0.1)
    assert params["weightDecay___specific___lin.bias"] == pytest.approx(0.2)
    initial = compiled["ipu_state"]["Accl1___lin.weight"]
    assert initial.shape == (1, 3)
    trainer(X)
    assert not torch.equal(optimizer.state_dict()["ipu_state"]["Accl1___lin.weight"], initial)


def test_an_offline_target_has_no_state():
    model = Regression()
    optimizer = poptorch.optim.Adam(model.parameters())
    options = poptorch.Options().useOfflineIpuTarget()
    poptorch.trainingModel(model, options, optimizer).compile(X)
    assert optimizer.state_dict()["ipu_state"] is None


def test_loaded_values_read_back_and_a_partial_state_is_completed_by_the_device():
    model = Regression()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1, eps=1e-4)
    trainer = poptorch.trainingModel(model, optimizer=optimizer)
    trainer(X)
    full = optimizer.state_dict()
    partial = copy.deepcopy(full)
    missing_state = partial["ipu_state"].pop("Accl2___lin.bias")
    missing_param = partial["ipu_param"].pop("adamEps___specific___lin.bias")
    partial["ipu_state"]["Step___lin.weight"] = torch.tensor(41.0)
    partial["ipu_param"]["learningRate___specific___lin.bias"] = torch.tensor(0.0)
    optimizer.load_state_dict(partial)
    loaded = optimizer.state_dict()
    assert loaded["ipu_state"]["Step___lin.weight"] == 41.0
    assert "Accl2___lin.bias" not in loaded["ipu_state"]

    bias = model.lin.bias.detach().clone()
    trainer(X)
    merged = optimizer.state_dict()
    assert merged["ipu_state"]["Step___lin.weight"] == 42.0
    assert merged["ipu_state"]["Accl2___lin.bias"] > missing_state * 0.999  # went on from there
    assert merged["ipu_param"]["adamEps___specific___lin.bias"] == missing_param
    # The loaded learning rate wins over the one in param_groups.
    assert torch.equal(model.lin.bias.detach(), bias)
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_a_checkpoint_continues_where_it_was_saved(tmp_path):
    def trained(steps, model, optimizer, trainer):
        for _ in range(steps):
            trainer(X)
        return weight(model)

    def fresh():
        torch.manual_seed(3)
        model = Regression()
        optimizer = poptorch.optim.Adam(model.parameters(), lr=0.5)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return model, optimizer, poptorch.trainingModel(model, optimizer=optimizer), scheduler

    model, optimizer, trainer, scheduler = fresh()
    trained(2, model, optimizer, trainer)
    scheduler.step()
    trainer.setOptimizer(optimizer)
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt"
    )
    expected = trained(2, model, optimizer, trainer)

    model, optimizer, trainer, _ = fresh()
    checkpoint = torch.load(tmp_path / "c.pt")
    model.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    trainer.setOptimizer(optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.25
    torch.testing.assert_close(trained(2, model, optimizer, trainer), expected)
    rate = optimizer.state_dict()["ipu_param"]["learningRate___specific___lin.bias"]
    assert rate == pytest.approx(0.25)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "LAMB"])
def test_resumed_training_is_training_in_a_row(kind, named):
    """Source: PopART keeps an optimiser's scalars in float32, variable and constant ones."""
    values = {
        "SGD": {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.013},
        "RMSprop": {"alpha": 0.999, "eps": 1e-9, "momentum": 0.3},
    }.get(kind, {"betas": (0.9, 0.999), "eps": 1e-9})
    values = {**(values if named else {}), "loss_scaling": 3.7}
    x, y = torch.randn(10, 8, 1), torch.randn(10, 8, 2)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.Linear(1, 2)

        def forward(self, x, y):
            return torch.nn.functional.mse_loss(self.lin(x), y)

    def start(weights, state):
        model = Net()
        model.load_state_dict(weights)
        optimizer = getattr(poptorch.optim, kind)(model.parameters(), lr=0.07, **values)
        trainer = poptorch.trainingModel(model, optimizer=optimizer)
        if state is not None:
            optimizer.load_state_dict(state)
            trainer.setOptimizer(optimizer)
        return model, optimizer, trainer

    model, optimizer, trainer = start(Net().state_dict(), None)
    for i in range(4):
        trainer(x[i], y[i])
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    again, _, resumed = start(weights, state)
    for i in range(4, 10):
        trainer(x[i], y[i])
        resumed(x[i], y[i])
    assert torch.equal(model.lin.weight, again.lin.weight)
    assert torch.equal(model.lin.bias, again.lin.bias)


def test_state_survives_detaching_and_a_new_optimizer_brings_its_own():
    model = Regression()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
    trainer = poptorch.trainingModel(model, optimizer=optimizer)
    trainer(X)
    assert optimizer.state_dict()["ipu_state"]["Step___lin.bias"] == 1.0
    trainer(X)
    trainer.detachFromDevice()  # brings home what is newer than that
    trainer(X)
    assert optimizer.state_dict()["ipu_state"]["Step___lin.bias"] == 3.0
    replacement = poptorch.optim.Adam(model.parameters(), lr=0.1)
    replacement.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    trainer.setOptimizer(replacement)
    trainer(X)
    assert replacement.state_dict()["ipu_state"]["Step___lin.bias"] == 4.0
    assert optimizer.state_dict()["ipu_state"]["Step___lin.bias"] == 3.0  # no longer linked


def test_constants_cannot_change_once_compiled():
    model = Regression()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.1)  # momentum left out: constant
    trainer = poptorch.trainingModel(model, optimizer=optimizer)
    trainer(X)
    optimizer.param_groups[0]["momentum"] = 0.9
    with pytest.raises(poptorch.Error, match=r"momentum of group 0 is a constant 0"):
        trainer.setOptimizer(optimizer)


def test_reduction_strategy_follows_the_accumulator_until_compiled():
    running = poptorch.MeanReductionStrategy.Running
    model = Regression()
    half = poptorch.optim.Adam(model.parameters(), accum_type=torch.float16)
    trainer = poptorch.trainingModel(model, optimizer=half)
    strategy = trainer.options.Training.meanAccumulationAndReplicationReductionStrategy
    assert strategy == running

    model = Regression()
    single = poptorch.optim.Adam(model.parameters())
    trainer = poptorch.trainingModel(model, optimizer=single)
    trainer.compile(X)
    single.accum_type = torch.float16
    with pytest.raises(ValueError, match="is already compiled"):
        trainer.setOptimizer(single)


def test_weights_of_their_own_for_each_replica_have_state_of_their_own():
    class PerReplica(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.own = torch.nn.Parameter(torch.ones(2, 3))
            self.shared = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            return poptorch.identity_loss(x * self.own * self.shared, "sum")

    model = PerReplica()
    optimizer = poptorch.optim.Adam(model.parameters(), lr=0.1)
    trainer = poptorch.trainingModel(model, poptorch.Options().replicationFactor(2), optimizer)
    trainer.own.replicaGrouping(
        poptorch.CommGroupType.NoGrouping, 0, poptorch.VariableRetrievalMode.OnePerGroup
    )
    trainer(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]))
    state = optimizer.state_dict()["ipu_state"]
    own, shared = state["Accl1___own"], state["Accl1___shared"]
    assert own.shape == (2, 3)
    assert shared.shape == (3,)
    assert bool((own[0] != 0).all())
    assert bool((own[1] == 0).all())  # the second replica saw zeros


@pytest.mark.parametrize("initial", [1.0, 2.0])
def test_automatic_loss_scaling_is_anchored(initial):
    model = Regression().half()
    options = poptorch.Options()
    options.Training.setAutomaticLossScaling(True)
    options.anchorTensor("final", "finalLossScale", poptorch.OutputMode.Final)
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.0, loss_scaling=initial)
    trainer = poptorch.trainingModel(model, options, optimizer)
    trainer.compile(X.half())
    factors = []
    for _ in range(4):
        factors.append(float(optimizer.state_dict()["ipu_state"]["lossScaleUpdateFactor"]))
        trainer(X.half())
        assert float(trainer.getAnchoredTensor("final")) == initial * factors[-1]
    assert factors == [1.0, 2.0, 4.0, 8.0]


def test_models_and_loaders_freeze_the_options_they_get():
    options = poptorch.Options()
    model = poptorch.inferenceModel(Regression(), options)
    for used in (options, model.options):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            used.deviceIterations(2)
    assert options.defaultOutputMode()  # the model chooses on a copy
    assert model.options.output_mode == poptorch.OutputMode.All


def replaced(make, new):
    """Weights of a regression trained with one optimiser, and then with another."""
    torch.manual_seed(0)
    model = Regression()
    trainer = poptorch.trainingModel(model, optimizer=make(model))
    trainer(X)
    before = model.lin.bias.detach().clone()
    trainer.setOptimizer(new(model))
    trainer(X)
    return before, model.lin.bias.detach()


def grouped(weight, bias, **defaults):
    def make(model):
        groups = [
            {"params": [model.lin.weight], "lr": weight},
            {"params": [model.lin.bias], "lr": bias},
        ]
        return poptorch.optim.AdamW(groups, lr=0.1, **defaults)

    return make


def adamw(**kwargs):
    return lambda model: poptorch.optim.AdamW(model.parameters(), lr=0.1, **kwargs)


def sgd(**kwargs):
    return lambda model: poptorch.optim.SGD(model.parameters(), lr=0.1, **kwargs)


@pytest.mark.parametrize(
    ("make", "new", "reason"),
    [
        (grouped(0.1, 0.2), adamw(), "no group 1"),
        (grouped(0.1, 0.2), grouped(0.1, 0.2, eps=1e-6), "eps of the defaults would turn"),
        (adamw(max_grad_norm=1.0), adamw(max_grad_norm=2.0), "maxGradNorm"),
        (adamw(), lambda m: poptorch.optim.Adam(m.parameters()), "ADAMW cannot become ADAM"),
        (
            sgd(momentum=0.9, use_combined_accum=True),
            sgd(momentum=0.9, use_combined_accum=False),
            "use_combined_accum changes",
        ),
        (
            sgd(momentum=0.9, use_combined_accum=False),
            sgd(momentum=0.9, use_combined_accum=False, velocity_accum_type=torch.float16),
            "velocityAccumType changes",
        ),
    ],
)
def test_replacements_that_popart_refuses(make, new, reason):
    with pytest.raises(poptorch.Error, match=reason):
        replaced(make, new)


@pytest.mark.parametrize(
    ("make", "new"),
    [
        (sgd(use_combined_accum=True), sgd(use_combined_accum=False)),  # no velocity
        (adamw(), adamw(bias_correction=False)),  # both correct it (CompilerImpl.cpp:879)
        (adamw(), adamw(second_order_momentum_accum_type=torch.float16)),  # not compared
    ],
)
def test_replacements_that_change_nothing(make, new):
    assert torch.equal(replaced(make, new)[1], replaced(make, make)[1])


def test_groups_stay_as_compiled(caplog):
    """Source: ``CompilerImpl.cpp:803``: a group's number stands for the parameters compiled."""
    before, after = replaced(grouped(0.1, 0.2), lambda m: grouped(0.1, 0.0)(m))
    assert torch.equal(before, after)
    assert not caplog.text

    def swapped(model):
        return poptorch.optim.AdamW(
            [
                {"params": [model.lin.bias], "lr": 0.1},
                {"params": [model.lin.weight], "lr": 0.0},
            ],
            lr=0.1,
        )

    before, after = replaced(grouped(0.1, 0.2), swapped)
    assert torch.equal(before, after)
    assert "parameters of the optimizer's groups differ" in caplog.text


def test_an_optimizer_of_other_parameters_is_refused():
    model = Regression()
    other = poptorch.optim.SGD(Regression().parameters(), lr=0.1)
    trainer = poptorch.trainingModel(model, optimizer=other)
    with pytest.raises(poptorch.Error, match=r"Parameter 0 of group 0 .* is not the model's"):
        trainer(X)
    same = [torch.nn.Parameter(parameter.data) for parameter in model.parameters()]
    trainer.setOptimizer(poptorch.optim.SGD(same, lr=0.1))  # the same memory
    before = model.lin.bias.detach().clone()
    trainer(X)
    assert not torch.equal(before, model.lin.bias)
