from __future__ import annotations

import copy

import pytest
import torch

from ipu_proxynorm.simulator import enums, optim
from ipu_proxynorm.simulator.optimizer.device_optimizer import DeviceOptimizer
from ipu_proxynorm.simulator.options import Options
from ipu_proxynorm.simulator.poptorch_core import Error

pytestmark = pytest.mark.simulator


def make_parameters(dtype=torch.float32):
    torch.manual_seed(1)
    return {
        "lin.weight": torch.randn(4, 3).to(dtype).requires_grad_(),
        "lin.bias": torch.randn(4).to(dtype).requires_grad_(),
    }


def gradients(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    return {name: torch.randn(p.shape, generator=generator) for name, p in parameters.items()}


def run_both(host_optimizer, device_optimizer, steps=10, **options_kwargs):
    """Ten steps of torch's own step and of the device's, on the same gradients."""
    host, device = make_parameters(), make_parameters()
    reference = host_optimizer(list(host.values()))
    simulated = DeviceOptimizer(device_optimizer(list(device.values())), device, Options())
    for step in range(steps):
        for name, grad in gradients(host, step).items():
            host[name].grad = grad
        reference.step()
        simulated.step({n: g * simulated.loss_scaling for n, g in gradients(device, step).items()})
    return host, device, simulated


SAME_AS_TORCH = {
    "sgd": (torch.optim.SGD, optim.SGD, {"lr": 0.1}),
    "sgd decay": (torch.optim.SGD, optim.SGD, {"lr": 0.1, "weight_decay": 0.3}),
    "sgd momentum": (
        torch.optim.SGD,
        optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3},
    ),
    "sgd nesterov": (
        torch.optim.SGD,
        optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "nesterov": True},
    ),
    "adam": (torch.optim.Adam, optim.Adam, {"lr": 0.1, "betas": (0.8, 0.9)}),
    "adam decay": (torch.optim.Adam, optim.Adam, {"lr": 0.1, "weight_decay": 0.3}),
    "adamw": (torch.optim.AdamW, optim.AdamW, {"lr": 0.1, "weight_decay": 0.3, "eps": 1e-3}),
    "rmsprop": (torch.optim.RMSprop, optim.RMSprop, {"lr": 0.1, "weight_decay": 0.3}),
    "rmsprop momentum": (
        torch.optim.RMSprop,
        optim.RMSprop,
        {"lr": 0.1, "momentum": 0.9, "alpha": 0.7},
    ),
    "rmsprop centred": (
        torch.optim.RMSprop,
        optim.RMSprop,
        {"lr": 0.1, "centered": True, "momentum": 0.5},
    ),
}


@pytest.mark.parametrize("case", SAME_AS_TORCH)
@pytest.mark.parametrize("from_torch", [True, False])
def test_ten_steps_are_those_of_torch(case, from_torch):
    torch_class, poptorch_class, kwargs = SAME_AS_TORCH[case]
    device_class = torch_class if from_torch else poptorch_class
    host, device, _ = run_both(
        lambda params: torch_class(params, **kwargs), lambda params: device_class(params, **kwargs)
    )
    for name in host:
        torch.testing.assert_close(device[name], host[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("case", SAME_AS_TORCH)
def test_loss_scaling_does_not_change_the_weights(case):
    torch_class, poptorch_class, kwargs = SAME_AS_TORCH[case]
    host, device, _ = run_both(
        lambda params: torch_class(params, **kwargs),
        lambda params: poptorch_class(params, loss_scaling=64.0, **kwargs),
    )
    for name in host:
        torch.testing.assert_close(device[name], host[name], rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("velocity_scaling", [None, 8.0])
@pytest.mark.parametrize("nesterov", [False, True])
def test_combined_accumulator_gives_the_weights_of_the_separate_one(velocity_scaling, nesterov):
    kwargs = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.3, "nesterov": nesterov}
    host, device, _ = run_both(
        lambda params: torch.optim.SGD(params, **kwargs),
        lambda params: optim.SGD(
            params,
            use_combined_accum=True,
            velocity_scaling=velocity_scaling,
            loss_scaling=4.0,
            **kwargs,
        ),
    )
    for name in host:
        torch.testing.assert_close(device[name], host[name], rtol=2e-5, atol=2e-6)


def test_combined_velocity_starts_with_the_weight_decay_and_is_scaled():
    parameters = make_parameters()
    optimizer = optim.SGD(
        list(parameters.values()),
        lr=0.1,
        momentum=0.9,
        weight_decay=0.3,
        velocity_scaling=8.0,
        use_combined_accum=True,
    )
    state = DeviceOptimizer(optimizer, parameters, Options()).ipu_state()
    torch.testing.assert_close(state["Accl___lin.bias"], parameters["lin.bias"] * 0.3 * 8.0)


def test_adamw_corrects_the_bias_even_when_told_not_to():
    host, device, _ = run_both(
        lambda params: torch.optim.AdamW(params, lr=0.1),
        lambda params: optim.AdamW(params, lr=0.1, bias_correction=False),
    )
    for name in host:
        torch.testing.assert_close(device[name], host[name], rtol=2e-5, atol=2e-6)


def lamb_in_float64(parameters, steps, lr, corrected, max_norm, decay=0.01, eps=1e-8):
    """The paper's Algorithm 2, written down anew in float64."""
    weights = {n: p.detach().double().clone() for n, p in parameters.items()}
    first = {n: torch.zeros_like(w) for n, w in weights.items()}
    second = {n: torch.zeros_like(w) for n, w in weights.items()}
    for step in range(steps):
        for name, grad in gradients(parameters, step).items():
            grad = grad.double()
            first[name] = 0.9 * first[name] + 0.1 * grad
            second[name] = 0.999 * second[name] + 0.001 * grad * grad
            m, v = first[name], second[name]
            if corrected:
                m, v = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            update = m / (v.sqrt() + eps) + decay * weights[name]
            ratio = min(weights[name].norm().item(), max_norm) / update.norm().item()
            weights[name] = weights[name] - lr * ratio * update
    return weights


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_lamb_follows_its_paper_on_device_and_host(corrected, max_norm):
    kwargs = {"lr": 0.1, "bias_correction": corrected, "max_weight_norm": max_norm}
    host, device, _ = run_both(
        lambda params: optim.LAMB(params, **kwargs), lambda params: optim.LAMB(params, **kwargs)
    )
    expected = lamb_in_float64(
        make_parameters(), 10, 0.1, corrected, 65500.0 if max_norm is None else max_norm
    )
    for name in host:
        torch.testing.assert_close(host[name].double(), expected[name], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(device[name].double(), expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_tensorflow_rmsprop_in_float64(momentum, centered):
    _, device, _ = run_both(
        lambda params: torch.optim.RMSprop(params, lr=0.1),
        lambda params: optim.RMSprop(
            params, lr=0.1, use_tf_variant=True, momentum=momentum, centered=centered, eps=1e-3
        ),
    )
    for name, start in make_parameters().items():
        weight = start.detach().double()
        square = torch.ones_like(weight)  # starts at 1
        mean = torch.zeros_like(weight)
        velocity = torch.zeros_like(weight)
        for step in range(10):
            grad = gradients(make_parameters(), step)[name].double()
            square = 0.99 * square + 0.01 * grad**2
            mean = 0.99 * mean + 0.01 * grad
            variance = square - mean**2 if centered else square
            update = 0.1 * grad / (variance + 1e-3).sqrt()  # eps under the root
            velocity = momentum * velocity + update  # the learning rate is accumulated
            weight = weight - velocity
        torch.testing.assert_close(device[name].double(), weight, rtol=1e-4, atol=1e-5)


def test_gradient_clipping_is_over_all_parameters_together():
    host, device = make_parameters(), make_parameters()
    reference = torch.optim.SGD(list(host.values()), lr=1.0)
    simulated = DeviceOptimizer(
        optim.SGD(list(device.values()), lr=1.0, max_grad_norm=0.5), device, Options()
    )
    for step in range(3):
        for name, grad in gradients(host, step).items():
            host[name].grad = grad
        torch.nn.utils.clip_grad_norm_(list(host.values()), 0.5)
        reference.step()
        simulated.step(gradients(device, step))
    for name in host:
        torch.testing.assert_close(device[name], host[name])


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("reduction", [enums.ReductionType.Mean, enums.ReductionType.Sum])
def test_sgd_clips_gradients_as_summed_with_loss_scaling(reduction, replicas):
    """PopART divides the sum, and undoes loss scaling, in the scaled learning rate only."""
    options = Options().replicationFactor(replicas)
    options.Training.gradientAccumulation(3)
    options.Training.accumulationAndReplicationReductionType(reduction)
    parameters, scaling, max_norm = make_parameters(), 4.0, 5.0
    before = copy.deepcopy(parameters)
    optimizer = optim.SGD(
        list(parameters.values()), lr=0.1, loss_scaling=scaling, max_grad_norm=max_norm
    )
    reduced = {name: scaling * grad for name, grad in gradients(parameters, 0).items()}
    DeviceOptimizer(optimizer, parameters, options).step(reduced)
    divisor = 3 * replicas if reduction == enums.ReductionType.Mean else 1
    norm = torch.cat([(grad * divisor).flatten() for grad in reduced.values()]).norm()
    assert norm > max_norm
    for name, grad in reduced.items():
        expected = before[name] - 0.1 * grad * (max_norm / norm) / scaling
        torch.testing.assert_close(parameters[name], expected)


@pytest.mark.parametrize("combined", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_momentum_clips_what_the_weights_get_not_the_velocity(combined, nesterov):
    host, device = make_parameters(), make_parameters()
    optimizer = optim.SGD(
        list(device.values()),
        lr=0.1,
        momentum=0.9,
        nesterov=nesterov,
        use_combined_accum=combined,
        max_grad_norm=2.0,
    )
    simulated = DeviceOptimizer(optimizer, device, Options())
    velocity = {name: torch.zeros_like(p) for name, p in host.items()}
    for step in range(3):
        grads = gradients(host, step)
        change = {}
        for name, grad in grads.items():
            velocity[name] = 0.9 * velocity[name] + grad
            change[name] = grad + 0.9 * velocity[name] if nesterov else velocity[name]
        norm = torch.cat([value.flatten() for value in change.values()]).norm()
        assert norm > 2.0
        with torch.no_grad():
            for name, param in host.items():
                param -= 0.1 * change[name] * (2.0 / norm)
        simulated.step(grads)
    for name in host:
        torch.testing.assert_close(device[name], host[name])


@pytest.mark.parametrize(
    ("cls", "torch_class", "decay"),
    [
        (optim.Adam, torch.optim.Adam, 0.0),
        (optim.Adam, torch.optim.Adam, 0.3),
        (optim.AdamW, torch.optim.AdamW, 0.3),
    ],
)
def test_adam_clips_without_loss_scaling_and_with_its_weight_decay(cls, torch_class, decay):
    host, device = make_parameters(), make_parameters()
    coupled = decay if cls is optim.Adam else 0.0
    # eps large enough that Adam's own scaling does not hide the clipping.
    kwargs = {"lr": 0.1, "eps": 0.1}
    reference = torch_class(list(host.values()), weight_decay=0.0 if coupled else decay, **kwargs)
    optimizer = cls(
        list(device.values()), weight_decay=decay, loss_scaling=64.0, max_grad_norm=0.5, **kwargs
    )
    simulated = DeviceOptimizer(optimizer, device, Options())
    for step in range(3):
        for name, grad in gradients(host, step).items():
            host[name].grad = grad + coupled * host[name].detach()
        torch.nn.utils.clip_grad_norm_(list(host.values()), 0.5)
        reference.step()
        simulated.step({name: 64.0 * grad for name, grad in gradients(device, step).items()})
    for name in host:
        torch.testing.assert_close(device[name], host[name], rtol=1e-4, atol=1e-5)


def test_state_has_the_requested_types_and_rounds_to_them():
    parameters = make_parameters()
    optimizer = optim.Adam(
        list(parameters.values()),
        lr=0.1,
        accum_type=torch.float16,
        first_order_momentum_accum_type=torch.float16,
    )
    simulated = DeviceOptimizer(optimizer, parameters, Options())
    simulated.step(gradients(parameters, 0))
    state = simulated.ipu_state()
    assert state["Accl1___lin.weight"].dtype == torch.float16
    assert state["Accl2___lin.weight"].dtype == torch.float32
    assert simulated.accumulatorType("lin.weight") == torch.float16
    # The gradient is rounded to its accumulator, the moment once more to its own type.
    grad = gradients(parameters, 0)["lin.weight"].half().float()
    assert torch.equal(state["Accl1___lin.weight"], (grad * (1 - 0.9)).half())


def test_scalars_have_the_names_and_values_of_popart():
    parameters = make_parameters()
    lr, decay, scaling = 0.05, 0.025, 0.75
    sgd = optim.SGD(list(parameters.values()), lr=lr, weight_decay=decay, loss_scaling=scaling)
    scalars = DeviceOptimizer(sgd, parameters, Options()).ipu_param()
    assert scalars["scaledLearningRate0___specific___lin.bias"] == pytest.approx(lr / scaling)
    assert scalars["weightDecayScaleFactor0___specific___lin.bias"] == pytest.approx(1 - lr * decay)
    assert scalars["lossScaling_FLOAT"] == pytest.approx(scaling)
    adam = optim.Adam(list(parameters.values()), lr=lr, weight_decay=decay)
    scalars = DeviceOptimizer(adam, parameters, Options()).ipu_param()
    assert scalars["learningRate___specific___lin.weight"] == pytest.approx(lr)
    assert scalars["weightDecay___specific___lin.weight"] == pytest.approx(decay)
    # Not given, so constant, so no tensor.
    assert "adamEps___specific___lin.weight" not in scalars
    assert "lossScaling_FLOAT" not in scalars


def test_post_mean_divides_in_the_scalars_and_running_mean_before_them():
    parameters = make_parameters()
    options = Options().deviceIterations(2).replicationFactor(2)
    options.Training.gradientAccumulation(4)
    sgd = optim.SGD(list(parameters.values()), lr=0.8)
    key = "scaledLearningRate0___specific___lin.bias"
    post = DeviceOptimizer(sgd, parameters, options)
    assert post.ipu_param()[key] == pytest.approx(0.8 / 8)
    running = options.clone()
    running.Training.setMeanAccumulationAndReplicationReductionStrategy(
        enums.MeanReductionStrategy.Running
    )
    assert DeviceOptimizer(sgd, parameters, running).ipu_param()[key] == pytest.approx(0.8)
    summed = options.clone()
    summed.Training.accumulationAndReplicationReductionType(enums.ReductionType.Sum)
    assert DeviceOptimizer(sgd, parameters, summed).ipu_param()[key] == pytest.approx(0.8)


def test_reduced_gradients_give_the_same_update_however_they_were_reduced():
    kwargs = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    results = []
    for combined in (False, True):
        for replicas, accumulation in ((1, 1), (2, 1), (1, 4), (2, 4)):
            for reduction in (enums.ReductionType.Mean, enums.ReductionType.Sum):
                parameters = make_parameters()
                options = Options().replicationFactor(replicas)
                options.Training.gradientAccumulation(accumulation)
                options.Training.accumulationAndReplicationReductionType(reduction)
                sgd = optim.SGD(list(parameters.values()), use_combined_accum=combined, **kwargs)
                simulated = DeviceOptimizer(sgd, parameters, options)
                for step in range(3):
                    simulated.step(gradients(parameters, step))
                results.append(parameters["lin.weight"])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])


def test_update_changes_variables_and_refuses_changed_constants():
    parameters = make_parameters()
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.1)
    simulated = DeviceOptimizer(optimizer, parameters, Options())
    optimizer.param_groups[0]["lr"] = 0.5
    before = parameters["lin.bias"].detach().clone()
    grads = {name: torch.ones_like(p) for name, p in parameters.items()}
    simulated.step(grads)  # without update the old value holds
    torch.testing.assert_close(parameters["lin.bias"], before - 0.1)
    simulated.update(optimizer)
    simulated.step(grads)
    torch.testing.assert_close(parameters["lin.bias"], before - 0.6)
    optimizer.param_groups[0]["weight_decay"] = 0.1
    with pytest.raises(Error, match="weightDecay of group 0 would turn"):
        simulated.update(optimizer)


def test_parameters_nobody_holds_or_the_loss_does_not_reach_stay():
    parameters = make_parameters()
    optimizer = torch.optim.SGD([parameters["lin.weight"]], lr=0.1, weight_decay=0.5)
    before = copy.deepcopy(parameters)
    simulated = DeviceOptimizer(optimizer, parameters, Options())
    simulated.step({"lin.weight": None, "lin.bias": torch.ones(4)})
    for name, param in parameters.items():
        assert torch.equal(param, before[name])


def test_loading_restores_and_keeps_what_is_missing(caplog):
    parameters = make_parameters()
    optimizer = optim.Adam(list(parameters.values()), lr=0.1, loss_scaling=2.0)
    simulated = DeviceOptimizer(optimizer, parameters, Options())
    simulated.step(gradients(parameters, 0))
    state, param = simulated.ipu_state(), simulated.ipu_param()
    fresh = DeviceOptimizer(optimizer, parameters, Options())
    fresh.load(state, {**param, "learningRate___specific___lin.bias": torch.tensor(0.7)})
    for name, tensor in fresh.ipu_state().items():
        assert torch.equal(tensor, state[name])
    assert fresh.ipu_param()["learningRate___specific___lin.bias"] == pytest.approx(0.7)
    missing = {k: v for k, v in state.items() if k != "Step___lin.bias"}
    fresh.load(missing, param)
    assert fresh.ipu_state()["Step___lin.bias"] == 1.0
    assert "ignoring missing state Step___lin.bias" in caplog.text


def test_automatic_loss_scaling_doubles_until_gradients_grow_large_and_spares_the_weights():
    options = Options()
    options.Training.setAutomaticLossScaling(True)
    parameters = make_parameters(torch.float16)
    before = {name: p.detach().float() for name, p in parameters.items()}
    optimizer = optim.SGD(list(parameters.values()), lr=1.0, loss_scaling=4.0)
    simulated = DeviceOptimizer(optimizer, parameters, options)
    assert simulated.ipu_state()["lossScaleUpdateFactor"] == 1.0
    scalings = []
    for _ in range(5):
        scalings.append(simulated.loss_scaling)
        # A true gradient of 300 passes an eighth of float16's range when scaled by 32.
        simulated.step(
            {n: torch.full_like(p, 300.0 * simulated.loss_scaling) for n, p in parameters.items()}
        )
        simulated.observe(torch.tensor([16 if scalings[-1] >= 32 else 0, 16]))
    assert scalings == [4.0, 8.0, 16.0, 32.0, 16.0]
    assert simulated.ipu_state()["lossScaleUpdateFactor"] == 8.0
    for name, param in parameters.items():
        # The scaling does not reach the weights.
        torch.testing.assert_close(param.float(), before[name] - 1500.0, rtol=1e-3, atol=1.0)
    loaded = DeviceOptimizer(optimizer, parameters, options)
    loaded.load(simulated.ipu_state(), simulated.ipu_param())
    assert loaded.loss_scaling == simulated.loss_scaling


@pytest.mark.parametrize("cls", [optim.Adam, optim.LAMB])
def test_nonsense_in_a_loaded_state_gives_nan_and_no_error(cls):
    parameters = make_parameters()
    optimizer = cls(list(parameters.values()), lr=0.1, betas=(0.9, 0.99))
    simulated = DeviceOptimizer(optimizer, parameters, Options())
    nonsense = {
        "adamBeta1___specific___lin.bias": torch.tensor(-0.5),
        "adamBeta2___specific___lin.weight": torch.tensor(-0.5),
    }
    steps = {"Step___lin.weight": torch.tensor(-1.5), "Step___lin.bias": torch.tensor(-1.5)}
    simulated.load({**simulated.ipu_state(), **steps}, {**simulated.ipu_param(), **nonsense})
    simulated.step(gradients(parameters, 0))
    assert parameters["lin.weight"].isnan().all()
    assert parameters["lin.bias"].isnan().all()


@pytest.mark.parametrize("case", SAME_AS_TORCH)
def test_float16_parameters_are_updated_in_float32_and_rounded(case):
    torch_class, poptorch_class, kwargs = SAME_AS_TORCH[case]
    stored = make_parameters(torch.float16)
    device = make_parameters(torch.float16)
    simulated = DeviceOptimizer(poptorch_class(list(device.values()), **kwargs), device, Options())
    wide = {name: p.detach().float().requires_grad_() for name, p in stored.items()}
    reference = torch_class(list(wide.values()), **kwargs)
    for step in range(3):
        for name, grad in gradients(stored, step).items():
            wide[name].grad = grad.half().float()
        reference.step()
        with torch.no_grad():
            for param in wide.values():
                param.copy_(param.half())  # one rounding a step
        simulated.step({n: g.half() for n, g in gradients(device, step).items()})
    for name, param in device.items():
        assert param.dtype == torch.float16
        torch.testing.assert_close(param.float(), wide[name], rtol=1e-3, atol=1e-3)


def test_stochastic_rounding_keeps_small_updates_on_average():
    options = Options()
    options.Precision.enableStochasticRounding(True)
    results = {}
    for name, chosen in (("nearest", Options()), ("stochastic", options)):
        weight = torch.ones(4000, dtype=torch.float16)
        simulated = DeviceOptimizer(torch.optim.SGD([weight], lr=1.0), {"weight": weight}, chosen)
        # A tenth of the spacing of float16 just below 1.
        for _ in range(20):
            simulated.step({"weight": torch.full((4000,), 2.0**-11 / 10)})
        results[name] = float(weight.double().mean())
    assert results["nearest"] == 1.0
    assert results["stochastic"] == pytest.approx(1.0 - 2 * 2.0**-11, abs=2.0**-11 / 10)


SGD, ADAM, RMSPROP = torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop


@pytest.mark.parametrize(
    ("make", "key", "value", "reason"),
    [
        (SGD, "lr", -0.1, "Negative learning rate"),
        (SGD, "weight_decay", -0.1, "Negative weight decay"),
        (SGD, "momentum", -0.5, "Negative momentum"),
        (SGD, "dampening", -0.5, "Negative dampening"),
        (ADAM, "betas", (-0.1, 0.9), "Negative beta1"),
        (ADAM, "eps", 0.0, "Non-positive eps"),
        (ADAM, "eps", 1e-60, "Non-positive eps"),  # none in float32
        (RMSPROP, "alpha", -0.1, "Negative alpha"),
        (RMSPROP, "eps", 0.0, "Non-positive eps"),
    ],
)
def test_values_that_popart_refuses(make, key, value, reason):
    parameters = make_parameters()
    optimizer = make(list(parameters.values()), lr=0.1)
    simulated = DeviceOptimizer(optimizer, parameters, Options())
    optimizer.param_groups[0][key] = value
    with pytest.raises(Error, match=rf"{reason} .* group 0 of the optimizer"):
        simulated.update(optimizer)
    with pytest.raises(Error, match=reason):
        DeviceOptimizer(optimizer, parameters, Options())


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"loss_scaling": 0.0}, "Loss scaling cannot be 0"),
        ({"loss_scaling": -2.0}, "Non-positive velocity scaling"),  # it is the loss's
        ({"velocity_scaling": 0.0, "use_combined_accum": True}, "Non-positive velocity scaling"),
    ],
)
def test_scalings_that_popart_refuses(kwargs, reason):
    parameters = make_parameters()
    kwargs = {"use_combined_accum": False, **kwargs}
    sgd = optim.SGD(list(parameters.values()), lr=0.1, momentum=0.9, **kwargs)
    with pytest.raises(Error, match=reason):
        DeviceOptimizer(sgd, parameters, Options())


def test_a_learning_rate_of_zero_is_variable_or_refused():
    parameters = make_parameters()
    groups = [{"params": list(parameters.values()), "lr": 0.0}]
    DeviceOptimizer(optim.AdamW(groups, lr=0.1), parameters, Options())
    with pytest.raises(Error, match="Constant, zero learning rate"):
        DeviceOptimizer(optim.AdamW(groups), parameters, Options())
