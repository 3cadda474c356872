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
