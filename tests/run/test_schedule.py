"""Learning rate and loss scaling as functions of the epoch, against their closed forms."""

import math

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from ipu_proxynorm.config import OptimizerConfig, ScheduleConfig
from ipu_proxynorm.run.optimizer import create_optimizer
from ipu_proxynorm.run.schedule import (
    create_schedule,
    learning_rate_factor,
    loss_scaling_at,
    step_schedule,
)


def test_cosine_after_warm_up():
    config = ScheduleConfig(name="cosine", warmup_epochs=2)
    factor = lambda epoch: learning_rate_factor(config, epoch, 10)  # noqa: E731
    assert [factor(0), factor(1), factor(2)] == [0, 0.5, 1]
    assert factor(6) == pytest.approx(0.5)
    assert factor(4) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert factor(10) == pytest.approx(0)


def test_constant_and_warm_up_longer_than_the_run():
    assert learning_rate_factor(ScheduleConfig(name="constant"), 7, 10) == 1
    assert learning_rate_factor(ScheduleConfig(name="cosine", warmup_epochs=20), 5, 10) == 0.5


def rates(config, host_calls, epochs, calls):
    """What a run's optimiser has at each of its first host calls, for lr = 1."""
    optimizer = create_optimizer(OptimizerConfig(lr=1.0), nn.Linear(1, 1))
    schedule = create_schedule(config, optimizer, host_calls=host_calls, epochs=epochs)
    found = []
    for _ in range(calls):
        found.append(optimizer.param_groups[0]["lr"])
        step_schedule(schedule)
    return found


@pytest.mark.parametrize(
    ("config", "scheduler"),
    [
        (
            ScheduleConfig(name="step", decay=0.1, step_epochs=[1, 2.5]),
            lambda o: lr_scheduler.MultiStepLR(o, [4, 10], gamma=0.1),
        ),
        (
            ScheduleConfig(name="exponential", decay=0.9, decay_epochs=0.25),
            lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        ),
        (
            ScheduleConfig(name="exponential", decay=0.97, decay_epochs=0.75, interval_epochs=0.75),
            lambda o: lr_scheduler.StepLR(o, 3, gamma=0.97),
        ),
        (ScheduleConfig(name="cosine"), lambda o: lr_scheduler.CosineAnnealingLR(o, 20)),
    ],
    ids=["step", "exponential", "staircase", "cosine"],
)
def test_without_warm_up_they_equal_torchs_schedulers(config, scheduler):
    weights = [nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weights, lr=1.0)
    theirs, expected = scheduler(optimizer), []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    assert rates(config, host_calls=4, epochs=5, calls=20) == pytest.approx(expected)


def test_warm_up_multiplies_the_staircase():
    # EfficientNet's: 0.97 every 2.4 epochs after 5 epochs of warm-up, here 10 host calls an epoch.
    config = ScheduleConfig(
        name="exponential", decay=0.97, decay_epochs=2.4, interval_epochs=2.4, warmup_epochs=5
    )
    found = rates(config, host_calls=10, epochs=350, calls=200)
    drops = [call // 24 for call in range(200)]  # exact: 2.4 epochs are 24 calls
    expected = [min(call / 50, 1) * 0.97**drop for call, drop in zip(range(200), drops)]
    assert found == pytest.approx(expected)


def test_a_staircase_falls_at_its_boundary_for_any_number_of_host_calls():
    config = ScheduleConfig(name="exponential", decay=0.5, decay_epochs=0.1, interval_epochs=0.1)
    for host_calls in (10, 30, 70, 1000):
        each = host_calls // 10
        found = rates(config, host_calls, 9, 3 * host_calls)
        assert found == pytest.approx([0.5 ** (call // each) for call in range(3 * host_calls)])


def test_other_layouts_of_the_same_images_have_the_same_rate():
    config = ScheduleConfig(name="cosine", warmup_epochs=0.5)
    fine = rates(config, host_calls=12, epochs=3, calls=36)
    coarse = rates(config, host_calls=4, epochs=3, calls=12)  # 3 device iterations
    assert coarse == pytest.approx(fine[::3])


def test_the_schedule_counts_host_calls_without_a_host_optimizer_step(recwarn):
    assert rates(ScheduleConfig(warmup_epochs=1), 4, 3, 5) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]


def test_loss_scaling_doubles_at_equal_intervals():
    config = OptimizerConfig(loss_scaling=128.0, initial_loss_scaling=16.0)
    found = [loss_scaling_at(config, epoch, 100) for epoch in range(101)]
    assert found == [16] * 25 + [32] * 25 + [64] * 25 + [128] * 26
    assert loss_scaling_at(OptimizerConfig(loss_scaling=8.0), 3, 100) == 8
    same = OptimizerConfig(loss_scaling=8.0, initial_loss_scaling=8.0)
    assert loss_scaling_at(same, 99, 100) == 8
