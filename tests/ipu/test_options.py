"""The configuration's layout arrives in PopTorch's options."""

import pytest

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import IPUConfig
from ipu_proxynorm.ipu import inference_options, training_options


def config(**changes):
    values = {
        "micro_batch_size": 2,
        "replication_factor": 3,
        "gradient_accumulation": 5,
        "device_iterations": 7,
        "splits": ["layer2.0", "layer3.0"],
    }
    return IPUConfig(**{**values, **changes})


def test_training():
    options = training_options(config(), seed=11)
    assert options.replication_factor == 3
    assert options.device_iterations == 7
    assert options.Training.gradient_accumulation == 5
    assert options.output_mode == poptorch.OutputMode.Sum
    assert options.random_seed == 11
    assert options.broadcast_buffers is False


@pytest.mark.parametrize(("asked", "used"), [(1, 3), (8, 8)])
def test_inference_has_a_device_iteration_for_each_stage(asked, used):
    options = inference_options(config(inference_device_iterations=asked), seed=0)
    assert options.device_iterations == used
    assert options.replication_factor == 3
    assert options.Training.gradient_accumulation == 1
    assert options.output_mode == poptorch.OutputMode.All


@pytest.mark.parametrize(
    ("execution", "strategy"),
    [("pipelined", "PipelinedExecution"), ("sharded", "ShardedExecution")],
)
def test_execution(execution, strategy):
    options = training_options(config(execution=execution), seed=0)
    assert type(options._execution_strategy) is getattr(poptorch, strategy)


@pytest.mark.parametrize(
    ("given", "expected"),
    [([0.2], [0.2, 0.2, 0.2]), ([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])],
)
def test_each_ipu_has_its_memory_proportion(given, expected, monkeypatch):
    seen = {}
    monkeypatch.setattr(
        poptorch.Options, "setAvailableMemoryProportion", lambda self, value: seen.update(value)
    )
    training_options(config(available_memory_proportion=given), seed=0)
    assert seen == {f"IPU{ipu}": proportion for ipu, proportion in enumerate(expected)}


@pytest.mark.parametrize(
    ("state", "on_chip", "sharded"),
    [("off-chip", 0, 0), ("sharded", 1, 1), ("on-chip", None, None)],
)
def test_the_optimiser_state_has_its_place(state, on_chip, sharded):
    options = training_options(config(optimizer_state=state), seed=0)
    location = options.TensorLocations._values.get("location_optimizer", {})
    assert location.get("onChip") == on_chip
    assert location.get("useReplicatedTensorSharding") == sharded


@pytest.mark.simulator  # the names of the options are those that the simulator keeps
def test_what_float16_needs_is_set_only_where_it_is_asked_for():
    plain = training_options(config(), seed=0).toDict()
    asked = training_options(
        config(precision="16.16", half_partials=True, floating_point_exceptions=True),
        seed=0,
        auto_loss_scaling=True,
    ).toDict()
    changed = {
        name for name in asked if asked[name] != plain.get(name) and not callable(asked[name])
    }
    assert changed == {
        "partialsTypeMatMuls",
        "convolutionOptions",
        "enableFloatingPointChecks",
        "automaticLossScalingSettings.enabled",
    }
    inference = inference_options(config(half_partials=True), seed=0).toDict()
    assert inference["partialsTypeMatMuls"] == "half"
