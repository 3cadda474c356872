from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch

from ipu_proxynorm.simulator import enums
from ipu_proxynorm.simulator.options import (
    Attribute,
    ConfigFileError,
    Options,
    ShardedExecution,
    TensorLocationSettings,
    _DistributedOptions,
)
from ipu_proxynorm.simulator.poptorch_core import Error
from ipu_proxynorm.simulator.settings import session_options

pytestmark = pytest.mark.simulator


def serialised(options):
    return options.clone().outputMode(enums.OutputMode.All).toDict()


def test_setters_chain_and_store_under_popart_names():
    options = (
        Options().deviceIterations(3).replicationFactor(2).modelName("net").maxRepeatLogs(None)
    )
    options.Training.gradientAccumulation(5).setAutomaticLossScaling(True)
    options.Precision.enableStochasticRounding(True).setPartialsType(torch.half)
    options.TensorLocations.numIOTiles(64).setWeightLocation(
        TensorLocationSettings().useOnChipStorage(False).useReplicatedTensorSharding()
    )
    values = serialised(options)
    expected = {
        "device_iterations": 3,
        "replication_factor": 2,
        "model_name": "net",
        "max_repeat_logs": 2**64 - 1,
        "gradient_accumulation": 5,
        "automaticLossScalingSettings.enabled": True,
        "enableStochasticRounding": True,
        "partialsTypeMatMuls": "half",
        "convolutionOptions": {"partialsType": "half"},
        "numIOTiles": 64,
        "location_weight": {"onChip": 0, "useReplicatedTensorSharding": 1},
        "execution_mode": 0,
    }
    assert {name: values[name] for name in expected} == expected
    session_options.validate(values)


def test_defaults():
    options = Options()
    assert options.defaultOutputMode()
    assert (options.device_iterations, options.replication_factor) == (1, 1)
    assert options.Training.gradient_accumulation == 1
    assert options.broadcast_buffers
    with pytest.raises(AssertionError, match="output mode must be picked"):
        options.toDict()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda o: o.deviceIterations("2"), AssertionError, "Unexpected type"),
        (lambda o: o.deviceIterations(0), ValueError, "at least 1 but got 0"),
        (lambda o: o.replicationFactor(-1), ValueError, "at least 1 but got -1"),
        (lambda o: o.Training.gradientAccumulation(0), ValueError, "at least 1"),
        (lambda o: o.set(no_such_option=1), AssertionError, "Invalid option no_such_option"),
        (lambda o: o.outputMode(2), AssertionError, "OutputMode"),
        (lambda o: o.outputMode(enums.OutputMode.EveryN), AssertionError, "output_return_period"),
        (lambda o: o.setExecutionStrategy("pipeline"), AssertionError, "execution strategies"),
        (lambda o: o.setAvailableMemoryProportion({"0": 0.5}), AssertionError, "Invalid key: 0"),
        (lambda o: o.connectionType(1), AssertionError, "ConnectionType"),
        (lambda o: o.randomSeed(1.0), AssertionError, "integer"),
        (lambda o: o.TensorLocations.numIOTiles(33), AssertionError, "even number between 32"),
        (lambda o: o.TensorLocations.numIOTiles(194), AssertionError, "even number between 32"),
        (lambda o: o.Precision.setPartialsType(torch.int), ValueError, "torch.float or torch.half"),
        (lambda o: o.Jit.traceModel(True), ValueError, "no longer supported"),
        (
            lambda o: o.Training.accumulationAndReplicationReductionType(
                enums.ReductionType.NoReduction
            ),
            ValueError,
            "ReductionType.Mean or poptorch.ReductionType.Sum",
        ),
        (
            lambda o: o.inputReplicaGrouping(2, enums.CommGroupType.Consecutive),
            ValueError,
            "cannot be larger",
        ),
        (
            lambda o: o.replicationFactor(4).inputReplicaGrouping(
                3, enums.CommGroupType.Consecutive
            ),
            ValueError,
            "factor of",
        ),
        (lambda o: o.inputReplicaGrouping(1, enums.CommGroupType.All), ValueError, "cannot be All"),
    ],
)
def test_bad_values_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call(Options())


def test_period_is_ignored_but_for_every_n():
    options = Options().outputMode(enums.OutputMode.EveryN, 4)
    assert options.output_return_period == 4
    assert options.outputMode(enums.OutputMode.Sum).output_return_period == 1


def test_frozen_options_refuse_every_setter_and_copies_do_not():
    options = Options()
    options._freeze()
    for change in (
        lambda: options.deviceIterations(2),
        lambda: setattr(options, "device_iterations", 2),
        lambda: options.Training.gradientAccumulation(2),
        lambda: options._Popart.set("autoRecomputation", 1),
        lambda: options.Precision.enableStochasticRounding(True),
        lambda: options.TensorLocations.numIOTiles(32),
        lambda: options.Distributed.disable(),
        lambda: options.relaxOptimizerAttributesChecks(),
    ):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            change()
    for copied in (options.clone(), copy.deepcopy(options)):
        copied.deviceIterations(7)
        copied.Training.gradientAccumulation(7)
        copied.Precision.enableStochasticRounding(True)
        # Groups that share the PopART options still do.
        assert copied._Popart.options["enableStochasticRounding"]
    assert options.device_iterations == 1
    assert options.Training.gradient_accumulation == 1
    assert "enableStochasticRounding" not in options._Popart.options


def test_options_survive_pickling():
    options = Options().deviceIterations(3).setExecutionStrategy(ShardedExecution("a", "b"))
    restored = pickle.loads(pickle.dumps(options))
    assert serialised(restored).keys() == serialised(options).keys()
    assert restored.device_iterations == 3
    assert restored._execution_strategy.stage("b").blocks == ("b",)


def test_unknown_attributes_are_refused():
    options = Options()
    with pytest.raises(AttributeError, match="Invalid attribute nothing"):
        _ = options.nothing
    with pytest.raises(AttributeError, match="Invalid private attribute _nothing"):
        options._nothing = 1
    assert options("device_iterations") == 1


def test_default_options_from_the_environment(monkeypatch):
    settings = {
        "deviceIterations": 4,
        "Training.gradientAccumulation": 2,
        "Precision.enableFloatingPointExceptions": True,
        "connectionType": "ConnectionType.OnDemand",
        "_Popart.set": ["saveInitializersToFile", "weights.onnx"],
    }
    monkeypatch.setenv("POPTORCH_DEFAULT_OPTIONS", json.dumps(settings))
    monkeypatch.setenv("POPTORCH_CACHE_DIR", "somewhere")
    options = Options()
    assert options.device_iterations == 4
    assert options.Training.gradient_accumulation == 2
    assert options.connection_type == enums.ConnectionType.OnDemand
    assert options._Popart.options["enableFloatingPointChecks"] is True
    assert options._Popart.options["saveInitializersToFile"] == "weights.onnx"
    assert options._Popart.options["cachePath"] == "somewhere"
    by_hand = Options().from_json('{"outputMode": "OutputMode.Sum"}')
    assert by_hand.output_mode == enums.OutputMode.Sum


def test_options_from_a_file(tmp_path):
    path = tmp_path / "options.conf"
    path.write_text(
        "# comment\n\n  deviceIterations(6)  \nTraining.gradientAccumulation(3) # two\n"
    )
    options = Options().loadFromFile(str(path))
    assert options.device_iterations == 6
    assert options.Training.gradient_accumulation == 3
    path.write_text("deviceIterations(6)\nreplicationFactor(2")
    with pytest.raises(ConfigFileError, match=r"SyntaxError at line 2 of options.conf"):
        Options().loadFromFile(str(path))


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("noSuchThing", True, "Unknown bool option noSuchThing"),
        ("noSuchThing", 3, "Unknown uint64 option"),
        ("noSuchThing", 0.5, "Unknown floating point option"),
        ("noSuchThing", "x", "Unknown string option"),
        ("noSuchThing", ["x"], "Unknown set / vector option"),
        ("noSuchThing", {"x": "y"}, "Unknown map option"),
        ("dotChecks", torch.zeros(1), "Unknown value type Tensor for option dotChecks"),
        ("patterns", {"x": True}, "patterns_level"),
        ("autoRecomputation", 5, "RecomputationType out of range"),
        ("accumulateOuterFragmentSettings.schedule", 4, "AccumulateOuterFragmentSchedule out of"),
        ("engineOptions", {"x": 0.5}, "Don't know how to convert type"),
        ("location_moon", {"onChip": 1}, "Unknown tensor location location_moon"),
    ],
)
def test_unknown_popart_options_are_refused_when_compiling(name, value, match):
    options = Options()
    options._Popart.set(name, value)
    with pytest.raises(Error, match=match):
        session_options.validate(serialised(options))


def test_patterns_and_lists_are_known():
    options = Options().updatableNamedBuffers(["mean"]).enableProfiling("here")
    options._Popart.setPatterns({"PadSum": False}, level=1).set("dotChecks", {"Final"})
    values = serialised(options)
    session_options.validate(values)
    assert values["engineOptions"]["autoReport.directory"] == "here"


def test_distributed_options_read_the_environment(monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "3")
    distributed = Options().Distributed
    assert (distributed.processId, distributed.numProcesses) == (3, 4)
    monkeypatch.setenv("SIZE", "2")
    distributed.setEnvVarNames("SIZE", "RANK")
    assert (distributed.processId, distributed.numProcesses) == (0, 2)
    assert distributed.disable().numProcesses == 1


def test_option_groups_may_be_replaced_by_a_subclass():
    class MyDistributed(_DistributedOptions):
        @property
        def numProcesses(self):
            return 12

    options = Options()
    options.Distributed.__class__ = MyDistributed
    assert options.Distributed.numProcesses == 12


def test_random_seed_also_seeds_the_host():
    Options().randomSeed(5)
    first = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(3))


def test_repr_shows_values_and_groups():
    text = repr(Options().deviceIterations(12))
    assert text.startswith("Options(")
    assert "device_iterations=12" in text
    assert "gradient_accumulation=1" in text
    assert repr(Options()) != text


def test_attributes_nest_and_are_restored():
    with Attribute(__outline={"layer": "a"}):
        with Attribute(__outline={"layer": "b", "more": "c"}):
            assert Attribute._current_attrs == {"__outline": {"layer": "b", "more": "c"}}
        assert Attribute._current_attrs == {"__outline": {"layer": "a"}}
    assert Attribute._current_attrs == {}


def test_anchors_keep_their_mode_and_period():
    options = Options()
    options.anchorTensor("grad", "Gradient___fc.weight")
    options.anchorTensor("var", "UpdatedVar___fc.weight", enums.OutputMode.EveryN, 3)
    options.anchorTensor("all", "x", enums.OutputMode.All, 3)
    assert options.anchored_tensors == {
        "grad": ["Gradient___fc.weight", True, None, 1],
        "var": ["UpdatedVar___fc.weight", False, enums.OutputMode.EveryN, 3],
        "all": ["x", False, enums.OutputMode.All, 1],
    }
