"""Session options that PopART takes one by one and refuses together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipu_proxynorm.simulator import (
    BeginBlock,
    Error,
    Options,
    ShardedExecution,
    identity_loss,
    inferenceModel,
    trainingModel,
)
from ipu_proxynorm.simulator.optim import SGD
from ipu_proxynorm.simulator.settings.together import refusals

pytestmark = pytest.mark.simulator

PREPARE = "replicatedCollectivesSettings.prepareScheduleForMergingCollectives"
MERGE = "replicatedCollectivesSettings.mergeAllReduceCollectives"
SCHEDULE = "accumulateOuterFragmentSettings.schedule"


def said(training=True, ipus=1, accumulation=1, **popart):
    found = refusals(
        {name.replace("__", "."): value for name, value in popart.items()},
        ipus=ipus,
        pipelined=ipus > 1,
        phased=False,
        training=training,
        accumulation=accumulation,
    )
    return " ".join(map(str, found))


@pytest.mark.parametrize(
    ("given", "neighbour", "match"),
    [
        ({PREPARE: True, MERGE: True}, {PREPARE: True, MERGE: True, SCHEDULE: 3}, "Serial"),
        ({PREPARE: True, SCHEDULE: 1}, {PREPARE: True, SCHEDULE: 0}, "Serial"),
        ({"autoRecomputation": 3}, {"autoRecomputation": 4}, "RecomputationType::Pipeline"),
        ({"autoRecomputation": 3}, {"autoRecomputation": 3, "ipus": 2}, "Pipeline in autoAnnotate"),
        ({"enablePipelining": True}, {"enablePipelining": False}, "more than 1 IPU"),
        (
            {"enableExplicitMainLoops": True},
            {"enableExplicitMainLoops": True, "useHostCopyOps": True},
            "requires useHostCopyOps",
        ),
        (
            {"aliasZeroCopy": True},
            {"aliasZeroCopy": True, "explicitRecomputation": True},
            "implicit recomputation",
        ),
        (
            {"aliasZeroCopy": True, "explicitRecomputation": True, "ipus": 2},
            {"aliasZeroCopy": True, "enableExplicitIR": True, "ipus": 2},
            "implicit pipelining",
        ),
        (
            {"batchSerializationSettings.method": 2},
            {"batchSerializationSettings.method": 2, "training": False},
            "LoopGradOp",
        ),
        (
            {"enableGradientAccumulation": False, "accumulation": 2},
            {"enableGradientAccumulation": False},
            "accumulationFactor > 1",
        ),
        ({"defaultPrefetchBufferingDepth": 0}, {"defaultPrefetchBufferingDepth": 3}, "depth of 0"),
    ],
)
def test_what_popart_refuses_and_its_nearest_neighbour(given, neighbour, match):
    assert match in said(**given)
    assert said(**neighbour) == ""


def model(splits=0):
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    if splits:
        BeginBlock(layers[1], ipu_id=1)

    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return identity_loss(self.layers(x).sum(), "none")

    return Trained()


@pytest.mark.parametrize("training", [True, False])
def test_refused_when_a_model_compiles(training):
    options = Options()
    options._Popart.set(PREPARE, True)
    module = model()
    if training:
        wrapped = trainingModel(module, options, SGD(module.parameters(), lr=0.1))
    else:
        wrapped = inferenceModel(module.layers, options)
    with pytest.raises(Error, match="AccumulateOuterFragmentSchedule::Serial"):
        wrapped(torch.ones(1, 2))


def test_recomputation_of_a_pipeline_is_none_of_shards():
    options = Options()
    options._Popart.set("autoRecomputation", 3)
    options.Training.gradientAccumulation(3)
    module = model(splits=1)
    trainingModel(module, options, SGD(module.parameters(), lr=0.1))(torch.ones(3, 2))
    options = options.clone().setExecutionStrategy(ShardedExecution())
    module = model(splits=1)
    with pytest.raises(Error, match="RecomputationType::Pipeline"):
        trainingModel(module, options, SGD(module.parameters(), lr=0.1))(torch.ones(3, 2))
