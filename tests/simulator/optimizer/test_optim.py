from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from ipu_proxynorm.simulator import enums, optim
from ipu_proxynorm.simulator._optimizer_attributes import (
    OptimizerAttrTracker,
    _OptimizerType,
    convertOptimizerToDict,
)
from ipu_proxynorm.simulator.options import Options

pytestmark = pytest.mark.simulator

ALL = (optim.SGD, optim.Adam, optim.AdamW, optim.RMSprop, optim.LAMB)


def parameters():
    return [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(1))]


def convert(optimizer, options=None, is_compiled=False, tracker=None):
    options = options or Options()
    tracker = tracker or OptimizerAttrTracker(options)
    return convertOptimizerToDict(optimizer, tracker, options, is_compiled)


def test_attributes_that_are_given_are_variable_and_others_constant():
    optimizer = optim.SGD(parameters(), lr=0.1, momentum=0.9, loss_scaling=2.0)
    group = convert(optimizer)["groups"][0]
    assert group["learningRate"] == (0.1, False)
    assert group["momentum"] == (0.9, False)
    assert group["weightDecay"] == (0, True)
    assert convert(optimizer)["defaults"]["lossScaling"] == (2.0, False)
    optimizer.variable_attrs.markAsConstant("momentum")
    optimizer.variable_attrs.markAsVariable("weight_decay")
    assert optimizer.variable_attrs.isConstant("momentum")
    group = convert(optimizer)["groups"][0]
    assert group["momentum"] == (0.9, True)
    assert group["weightDecay"] == (0, False)
    for method in ("markAsConstant", "markAsVariable"):
        with pytest.raises(AssertionError, match="Unknown attribute alpha"):
            getattr(optimizer.variable_attrs, method)("alpha")


def test_attributes_of_torch_optimizers_are_constant_at_their_default():
    sgd = torch.optim.SGD(parameters(), lr=0.0, momentum=0.0, weight_decay=0.1)
    group = convert(sgd)["groups"][0]
    assert group["learningRate"] == (0.0, False)  # always variable
    assert group["momentum"] == (0.0, True)
    assert group["weightDecay"] == (0.1, False)
    adam = convert(torch.optim.Adam(parameters(), betas=(0.5, 0.6), eps=1e-3))
    assert adam["groups"][0]["beta1"] == (0.5, True)  # always constant
    assert adam["groups"][0]["beta2"] == (0.6, True)
    assert adam["groups"][0]["eps"] == (1e-3, False)
    adamw = convert(torch.optim.AdamW(parameters()))
    assert adamw["groups"][0]["weightDecay"] == (1e-2, True)
    assert convert(torch.optim.Adam(parameters()))["defaults"]["lossScaling"] == (1.0, True)


def test_each_group_has_its_own_values():
    first, second = parameters()
    optimizer = optim.SGD(
        [{"params": [first], "lr": 0.5, "label": "norms"}, {"params": [second], "momentum": 0.1}],
        lr=0.1,
        momentum=0.9,
    )
    groups = convert(optimizer)["groups"]
    assert [g["learningRate"][0] for g in groups] == [0.5, 0.1]
    assert [g["momentum"][0] for g in groups] == [0.9, 0.1]
    assert optimizer.param_groups[0]["label"] == "norms"


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda p: torch.optim.SGD(p, lr=1), _OptimizerType.SGD2),
        (lambda p: optim.SGD(p, lr=1, use_combined_accum=True), _OptimizerType.SGD1),
        (torch.optim.Adam, _OptimizerType.ADAM),
        (torch.optim.AdamW, _OptimizerType.ADAMW),
        (optim.AdamW, _OptimizerType.ADAMW),
        (lambda p: optim.AdamW(p, bias_correction=False), _OptimizerType.ADAMW_NO_BIAS),
        (torch.optim.RMSprop, _OptimizerType.RMSPROP),
        (lambda p: optim.RMSprop(p, centered=True), _OptimizerType.RMSPROP_CENTERED),
        (optim.LAMB, _OptimizerType.LAMB),
        (lambda p: optim.LAMB(p, bias_correction=False), _OptimizerType.LAMB_NO_BIAS),
    ],
)
def test_kinds(make, kind):
    assert convert(make(parameters()))["optimizer_type"] == kind


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda p: torch.optim.Adam(p, amsgrad=True), ValueError, "non-amsgrad"),
        (lambda p: torch.optim.Adagrad(p), AssertionError, "Unsupported optimizer type Adagrad"),
        (
            lambda p: optim.Adam(p, max_grad_norm=math.nan),
            ValueError,
            "max_grad_norm must not be NaN",
        ),
        (lambda p: optim.SGD(p, lr=1, loss_scaling="1"), AssertionError, "number for loss_scaling"),
        (
            lambda p: optim.RMSprop(
                [{"params": p[:1], "centered": True}, {"params": p[1:], "centered": False}]
            ),
            AssertionError,
            "same value for the 'centered'",
        ),
    ],
)
def test_what_the_device_cannot_do_is_refused(make, error, match):
    with pytest.raises(error, match=match):
        convert(make(parameters()))


@pytest.mark.parametrize("cls", ALL)
def test_accumulation_types_are_checked(cls):
    with pytest.raises(AssertionError, match=r"must be either torch\.float32 or torch\.float16"):
        cls(parameters(), lr=0.1, accum_type=torch.float64)


def test_velocity_scaling_is_only_for_the_combined_accumulator(caplog):
    combined = optim.SGD(parameters(), lr=1, use_combined_accum=True, velocity_scaling=4.0)
    assert convert(combined)["groups"][0]["velocityScaling"] == (4.0, False)
    assert not caplog.records
    optim.SGD(parameters(), lr=1, velocity_scaling=4.0)
    assert "velocity_scaling value ignored" in caplog.text


def test_new_attributes_are_reported_once_and_only_those_that_are_new(caplog):
    options = Options()
    tracker = OptimizerAttrTracker(options)
    optimizer = optim.SGD(parameters(), lr=0.1)
    optimizer.param_groups[0]["there_from_the_start"] = 1
    optimizer.own = 1
    convert(optimizer, options, tracker=tracker)
    assert not caplog.records
    optimizer.param_groups[0]["initial_lr"] = 0.1
    optimizer.other = 1
    for _ in range(2):
        convert(optimizer, options, True, tracker)
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "Ignoring unexpected optimizer attribute in SGD2 optimizer: ['other']",
        "Ignoring unexpected group 0 attribute in SGD2 optimizer: ['initial_lr']",
    ]


def test_relaxed_checks_are_silent(caplog):
    options = Options().relaxOptimizerAttributesChecks()
    tracker = OptimizerAttrTracker(options)
    optimizer = optim.SGD(parameters(), lr=0.1)
    convert(optimizer, options, tracker=tracker)
    optimizer.other = 1
    convert(optimizer, options, True, tracker)
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("base", [*ALL, torch.optim.SGD, torch.optim.AdamW])
def test_subclasses_are_warned_about(base, caplog):
    convert(base(parameters(), lr=0.1))
    assert "Python optimizer code" not in caplog.text

    class Mine(base):
        pass

    convert(Mine(parameters(), lr=0.1))
    assert "Poptorch does not run Python optimizer code directly" in caplog.text


def test_float16_accumulators_keep_a_running_mean():
    options = Options()
    options._freeze()
    half = optim.Adam(parameters(), accum_type=torch.float16)
    convert(half, options)
    running = enums.MeanReductionStrategy.Running
    training = options.Training
    assert training.meanAccumulationAndReplicationReductionStrategy == running
    with pytest.raises(AttributeError):
        training.gradientAccumulation(2)  # frozen again
    combined = Options()
    convert(optim.SGD(parameters(), lr=1, use_combined_accum=True, accum_type=torch.half), combined)
    post = enums.MeanReductionStrategy.Post
    assert combined.Training.meanAccumulationAndReplicationReductionStrategy == post
    with pytest.raises(ValueError, match="is already compiled"):
        convert(half, Options(), is_compiled=True)


def test_automatic_loss_scaling_makes_the_loss_scaling_variable():
    options = Options()
    options.Training.setAutomaticLossScaling(True)
    for cls in (optim.SGD, torch.optim.SGD):
        optimizer = cls(parameters(), lr=0.1)
        assert convert(optimizer, options)["defaults"]["lossScaling"] == (1.0, False)


@pytest.mark.parametrize("cls", ALL)
def test_state_dict_has_torchs_keys_and_the_devices(cls):
    optimizer = cls(parameters(), lr=0.25)
    state = optimizer.state_dict()
    assert state["ipu_state"] is None
    assert state["ipu_param"] is None
    assert not optimizer.has_state()
    state["ipu_state"] = {"Accl1___w": torch.ones(2)}
    state["ipu_param"] = {}
    fresh = cls(parameters(), lr=0.1)
    fresh.load_state_dict(state)
    assert fresh.param_groups[0]["lr"] == 0.25
    assert fresh.has_state()
    assert fresh.ipu_state_is_dirty
    assert torch.equal(fresh.state_dict()["ipu_state"]["Accl1___w"], torch.ones(2))


def test_only_device_states_can_be_loaded():
    torch_state = torch.optim.Adam(parameters()).state_dict()
    with pytest.raises(RuntimeError, match="Only IPU optimizer states can be loaded onto the IPU"):
        optim.Adam(parameters()).load_state_dict(torch_state)
    with pytest.raises(RuntimeError, match="it is empty"):
        optim.Adam(parameters()).set_state_dict({})


@pytest.mark.parametrize("cls", ALL)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, "pickle"])
def test_copies_keep_the_attributes(cls, duplicate):
    optimizer = cls(parameters(), lr=0.1, loss_scaling=8.0, accum_type=torch.float16)
    optimizer.set_state_dict({"ipu_state": {}, "ipu_param": {}})
    # Schedulers and models leave hooks on the instance that cannot be pickled.
    optimizer.step = lambda: None
    optimizer.state_dict = lambda: None
    copied = (
        pickle.loads(pickle.dumps(optimizer)) if duplicate == "pickle" else duplicate(optimizer)
    )
    assert convert(copied) == convert(optimizer)
    assert copied.loss_scaling == 8.0
    assert copied.ipu_state_is_dirty
    assert copied.state_dict()["ipu_state"] == {}
    assert "step" not in vars(copied)


def test_schedulers_drive_them():
    optimizer = optim.Adam(parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step()
    scheduler.step()
    assert convert(optimizer)["groups"][0]["learningRate"] == (0.5, False)


def test_maximize_is_said_to_have_no_effect(caplog):
    convert(torch.optim.SGD(parameters(), lr=0.1, maximize=True))
    assert "maximize=True has no effect on the device" in caplog.text
    caplog.clear()
    convert(torch.optim.SGD(parameters(), lr=0.1))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
