"""Parameter groups and the learning-rate schedule."""

import math

import pytest
from torch import nn

from ipu_proxynorm.config import OptimizerConfig, ScheduleConfig
from ipu_proxynorm.training.optimizer import (
    create_optimizer,
    create_schedule,
    learning_rate_factor,
    step_schedule,
)
from models import create_model


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
def test_weights_and_proxy_parameters_decay_and_nothing_else(name):
    model = create_model("resnetv2_8", norm="gn4+pn")
    optimizer = create_optimizer(OptimizerConfig(name=name, lr=0.2, weight_decay=0.01), model)
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        decayed = parameter.dim() > 1 or "proxy" in parameter_name
        assert decay[id(parameter)] == (0.01 if decayed else 0), parameter_name
    assert {g["lr"] for g in optimizer.param_groups} == {0.2}


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


def test_the_schedule_counts_host_calls_without_a_host_optimizer_step(recwarn):
    optimizer = create_optimizer(OptimizerConfig(lr=2.0), nn.Linear(1, 1))
    schedule = create_schedule(ScheduleConfig(warmup_epochs=1), optimizer, host_calls=4, epochs=3)
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        step_schedule(schedule)
    assert rates == pytest.approx([0, 0.5, 1, 1.5, 2])
    assert not [w for w in recwarn if "lr_scheduler" in str(w.message)]
