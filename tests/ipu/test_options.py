"""The configuration's layout arrives in PopTorch's options."""

import dataclasses

import pytest

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import IPUConfig, ModelConfig, OptimizerConfig, RunConfig
from ipu_proxynorm.ipu import inference_options, training_options


def config(seed=0, **changes):
    values = {
        "micro_batch_size": 2,
        "replication_factor": 3,
        "gradient_accumulation": 5,
        "device_iterations": 7,
        "splits": ["layer2.0", "layer3.0"],
    }
    return RunConfig(seed=seed, ipu=IPUConfig(**{**values, **changes}))


def test_training():
    options = training_options(config(seed=11))
    assert options.replication_factor == 3
    assert options.device_iterations == 7
    assert options.Training.gradient_accumulation == 5
    assert options.output_mode == poptorch.OutputMode.Sum
    assert options.random_seed == 11
    assert options.broadcast_buffers is False


@pytest.mark.parametrize(("asked", "used"), [(1, 3), (8, 8)])
def test_inference_has_a_device_iteration_for_each_stage(asked, used):
    options = inference_options(config(inference_device_iterations=asked))
    assert options.device_iterations == used
    assert options.replication_factor == 3
    assert options.Training.gradient_accumulation == 1
    assert options.output_mode == poptorch.OutputMode.All


@pytest.mark.parametrize(
    ("execution", "strategy"),
    [("pipelined", "PipelinedExecution"), ("sharded", "ShardedExecution")],
)
def test_execution(execution, strategy):
    options = training_options(config(execution=execution))
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
    training_options(config(available_memory_proportion=given))
    assert seen == {f"IPU{ipu}": proportion for ipu, proportion in enumerate(expected)}


@pytest.mark.parametrize(
    ("state", "on_chip", "sharded"),
    [("off-chip", 0, 0), ("sharded", 1, 1), ("on-chip", None, None)],
)
def test_the_optimiser_state_has_its_place(state, on_chip, sharded):
    options = training_options(config(optimizer_state=state))
    location = options.TensorLocations._values.get("location_optimizer", {})
    assert location.get("onChip") == on_chip
    assert location.get("useReplicatedTensorSharding") == sharded


@pytest.mark.simulator  # the names of the options are those that the simulator keeps
def test_what_float16_needs_is_set_only_where_it_is_asked_for():
    plain = training_options(config()).toDict()
    run = config(precision="16.16", half_partials=True, floating_point_exceptions=True)
    asked = training_options(
        dataclasses.replace(run, optimizer=OptimizerConfig(auto_loss_scaling=True))
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
    inference = inference_options(config(half_partials=True)).toDict()
    assert inference["partialsTypeMatMuls"] == "half"


def changed(run, options=training_options, **base):
    """Return the options of a run that others, of the same splits, do not have."""
    plain, asked = options(config(**base)).toDict(), options(run).toDict()
    return {
        name: value
        for name, value in asked.items()
        if value != plain.get(name) and not callable(value)
    }


@pytest.mark.simulator
@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"stable_norm": True}, {"enableStableNorm": True}),
        (
            {"deterministic_workers": True},
            {"engineOptions": {"target.deterministicWorkers": "portable"}},
        ),
        ({"io_tiles": 32}, {"numIOTiles": 32}),
        ({"auto_round_ipus": True}, {"auto_round_num_ipus": True}),
        ({"executable_cache": "here"}, {"enableEngineCaching": True, "cachePath": "here"}),
        ({"recomputation": "none"}, {"autoRecomputation": 0}),
        ({"recomputation": "pipeline"}, {"autoRecomputation": 3}),
        (
            {"merge_all_reduce": True},
            {
                "accumulateOuterFragmentSettings.schedule": 3,
                "replicatedCollectivesSettings.prepareScheduleForMergingCollectives": True,
                "replicatedCollectivesSettings.mergeAllReduceCollectives": True,
            },
        ),
        (
            {
                "merge_all_reduce": True,
                "popart": {"accumulateOuterFragmentSettings.schedule": 2, "outlineThreshold": 10},
            },
            {
                "accumulateOuterFragmentSettings.schedule": 2,
                "replicatedCollectivesSettings.prepareScheduleForMergingCollectives": True,
                "replicatedCollectivesSettings.mergeAllReduceCollectives": True,
                "outlineThreshold": 10.0,
            },
        ),
        (
            {"engine": {"target.hostSyncTimeout": 600, "debug.allowOutOfMemory": True}},
            {"engineOptions": {"target.hostSyncTimeout": "600", "debug.allowOutOfMemory": "true"}},
        ),
        (
            {
                "precision": "16.16",
                "half_partials": True,
                "popart": {"convolutionOptions": {"enableConvDithering": True}},
            },
            {
                "partialsTypeMatMuls": "half",
                "convolutionOptions": {"partialsType": "half", "enableConvDithering": "true"},
            },
        ),
    ],
)
def test_keys_become_options_by_popart_and_poplar_names(asked, expected):
    assert changed(config(**asked)) == expected


@pytest.mark.simulator
@pytest.mark.parametrize(
    ("kind", "value"), [("none", 0), ("standard", 1), ("norm-only", 2), ("all", 4)]
)
@pytest.mark.parametrize("layout", [{"splits": []}, {"execution": "sharded"}])
def test_without_a_pipeline_recomputation_is_part_of_the_program(kind, value, layout):
    run = config(recomputation=kind, **layout)
    assert changed(run, **layout) == {"autoRecomputation": value, "explicitRecomputation": True}
    assert changed(run, inference_options, **layout) == {}


@pytest.mark.simulator
@pytest.mark.parametrize("options", [training_options, inference_options])
def test_the_device_groups_channels_as_the_layers_do(options):
    run = dataclasses.replace(config(), model=ModelConfig(channel_grouping="strided"))
    assert changed(run, options) == {"groupNormStridedChannelGrouping": True}
