"""Configuration: what is read is what was written, and what is wrong is named."""

import pytest

from ipu_proxynorm.config import RunConfig, documentation, dump, load, loads, recipe_names
from ipu_proxynorm.errors import UserError, printable

MINIMAL = """
name: trial
model: {name: resnetv2_8}
data: {name: digits}
ipu: {micro_batch_size: 4, gradient_accumulation: 4}
training: {epochs: 3}
"""


def test_values_have_their_types_and_the_rest_its_defaults():
    config = loads(MINIMAL)
    assert isinstance(config, RunConfig)
    assert (config.name, config.ipu.micro_batch_size, config.training.epochs) == ("trial", 4, 3)
    assert (config.model.norm, config.ipu.splits, config.optimizer.lr) == ("gn4+pn", [], 0.1)


def test_overrides_win_and_are_yaml():
    config = loads(
        MINIMAL,
        ["training.epochs=5", "ipu.splits=[layer2.0]", "model.width=null", "optimizer.lr=1"],
    )
    assert config.training.epochs == 5
    assert config.ipu.splits == ["layer2.0"]
    assert config.model.width is None
    assert isinstance(config.optimizer.lr, float)


def test_two_configurations_share_no_list():
    one, two = loads(MINIMAL), loads(MINIMAL)
    one.ipu.splits.append("fc")
    assert two.ipu.splits == []


def test_dump_reads_back_equal():
    config = loads(MINIMAL, ["ipu.splits=[layer2.0, layer3.0]", "ipu.gradient_accumulation=5"])
    assert loads(dump(config)) == config


def test_options_by_their_own_names_are_mappings_that_files_and_overrides_add_to():
    text = MINIMAL.replace(
        "gradient_accumulation: 4}",
        "gradient_accumulation: 4, engine: {target.hostSyncTimeout: 600, debug: {cbor: true}},\n"
        "  popart: {convolutionOptions: {enableConvDithering: true}, outlineThreshold: 10}}",
    )
    config = loads(
        text,
        [
            "ipu.engine.target.deterministicWorkers=true",
            "ipu.engine.debug.cbor=null",
            "ipu.popart.accumulateOuterFragmentSettings.schedule=3",
        ],
    )
    assert config.ipu.engine == {
        "target.hostSyncTimeout": 600,
        "target.deterministicWorkers": True,
    }
    assert config.ipu.popart == {
        "convolutionOptions": {"enableConvDithering": True},
        "outlineThreshold": 10,
        "accumulateOuterFragmentSettings.schedule": 3,
    }
    assert loads(dump(config)) == config
    config.ipu.engine.clear()
    assert loads(text).ipu.engine


@pytest.mark.parametrize("path", recipe_names())
def test_shipped_configurations_are_valid(path):
    load(path)


def test_every_key_says_what_it_is():
    keys = documentation()
    assert {"name", "model.norm", "ipu.splits", "training.epochs"} <= {key.name for key in keys}
    for key in keys:
        assert len(key.text) > 8, key.name
        plain = ("str", "int", "float", "bool", "list of str", "mapping")
        assert key.type in plain or "or null" in key.type


WRONG = [
    ("model.channel_grouping=stride", "model.channel_grouping", "'stride'", "'strided'"),
    ("ipu.recomputation=norms", "ipu.recomputation", "'norms'", "standard, norm-only"),
    ("ipu.io_tiles=33", "ipu.io_tiles", "33", "a multiple of 2 from 32 to 192"),
    ("ipu.io_tiles=194", "ipu.io_tiles", "194", "a multiple of 2 from 32 to 192"),
    ("ipu.popart=3", "ipu.popart", "3", "expected mapping"),
    (
        "ipu.popart.enableOutlinning=false",
        "ipu.popart.enableOutlinning",
        "False",
        "enableOutlining",
    ),
    ("ipu.popart.enableOutlining=1", "ipu.popart.enableOutlining", "1", "true or false"),
    ("ipu.popart.outlineThreshold=true", "ipu.popart.outlineThreshold", "True", "a number"),
    ("ipu.popart.swapLimitScheduler=-1", "swapLimitScheduler", "-1", "whole number from 0 up"),
    ("ipu.popart.swapLimitScheduler=2.5", "swapLimitScheduler", "2.5", "whole number from 0 up"),
    ("ipu.popart.mergeVarUpdate=4", "mergeVarUpdate", "4", "0 to 3, a value of MergeVarUpdateType"),
    ("ipu.popart.kahnTieBreaker=3", "ipu.popart.kahnTieBreaker", "3", "a string"),
    ("ipu.popart.dotChecks=Final", "ipu.popart.dotChecks", "Final", "a list"),
    ("ipu.popart.gclOptions=x", "ipu.popart.gclOptions", "x", "names with values"),
    ("ipu.popart.autoRecomputation=1", "ipu.popart.autoRecomputation", "1", "ipu.recomputation"),
    ("ipu.popart.random_seed=1", "ipu.popart.random_seed", "1", "PopTorch sets it by itself"),
    ("ipu.popart.engineOptions={a: b}", "ipu.popart.engineOptions", "b", "set ipu.engine instead"),
    ("ipu.engine.target.hostSyncTimout=9", "target.hostSyncTimout", "9", "target.hostSyncTimeout"),
    ("ipu.engine.target.hostSyncTimeout=x", "target.hostSyncTimeout", "x", "whole number"),
    ("ipu.engine.debug.cbor=2", "ipu.engine.debug.cbor", "2", "true or false"),
    (
        "ipu.engine.exchange.streamBufferOverlap=all",
        "ipu.engine.exchange.streamBufferOverlap",
        "all",
        "none, any, hostRearrangeOnly",
    ),
    ("model.nrom=ln", "model.nrom", "'ln'", "model.norm"),
    ("epochs=3", "'epochs'", "3", "training.epochs"),
    ("ipu.splitz=[a]", "ipu.splitz", "a", "ipu.splits"),
    ("model.foo.bar=1", "model.foo", "1", "--keys"),
    ("training.epochs=ten", "training.epochs", "'ten'", "expected int"),
    ("training.epochs=2.5", "training.epochs", "2.5", "expected int"),
    ("data.workers=null", "data.workers", "None", "expected int"),
    ("ipu.splits=layer2", "ipu.splits", "'layer2'", "expected list of str"),
    ("ipu.execution=[1]", "ipu.execution", "[1]", "expected one of"),
    ("training=3", "training", "3", "keys below it"),
    ("training.epochs=0", "training.epochs", "0", "from 1 up"),
    ("optimizer.lr=nan", "optimizer.lr", "nan", "finite"),
    ("optimizer.lr=.inf", "optimizer.lr", "inf", "finite"),
    ("optimizer.loss_scaling=0", "optimizer.loss_scaling", "0", "above 0"),
    ("training.label_smoothing=1.5", "training.label_smoothing", "1.5", "0 to 1"),
    ("optimizer.name=adm", "optimizer.name", "'adm'", "'adam'"),
    ("optimizer.momentum=-1", "optimizer.momentum", "-1", "from 0 up"),
    ("optimizer.alpha=0.9", "optimizer.alpha", "0.9", "rmsprop_tf"),
    ("optimizer.max_weight_norm=3", "optimizer.max_weight_norm", "3", "lamb do"),
    ("optimizer.initial_loss_scaling=3", "optimizer.initial_loss_scaling", "3", "power of 2"),
    ("optimizer.accumulation=half", "optimizer.accumulation", "'half'", "float16"),
    ("optimizer.auto_loss_scaling=true", "auto_loss_scaling", "32.32", "16.32 or 16.16"),
    ("ipu.splits=layer3.0", "ipu.splits", "'layer3.0'", "list of str, e.g. [layer3.0] (layers"),
    ("schedule.name=step", "schedule.decay", "step", "needs it"),
    ("schedule.name=exponential", "schedule.decay", "exponential", "needs it"),
    ("schedule.decay=0.5", "schedule.decay", "0.5", "leave it out"),
    ("schedule.interval_epochs=0", "schedule.interval_epochs", "0", "above 0"),
    ("ipu.precision=16.8", "ipu.precision", "'16.8'", "'16.16'"),
    ("ipu.half_partials=true", "ipu.half_partials", "True", "ipu.precision=16.32"),
    ("training.cutmix_lambda_low=2", "training.cutmix_lambda_low", "2", "0 to 1"),
    ("ipu.execution=pipeline", "ipu.execution", "'pipeline'", "'pipelined'"),
    ("seed=-1", "seed", "-1", "from 0"),
    ("seed=99999999999999999999", "seed", "9999", "2**63"),
    ("name=a/b", "name", "'a/b'", "without '/'"),
    ("epochs", "override", "'epochs'", "key=value"),
    ("=3", "override", "'=3'", "key=value"),
    ("ipu.splits=[a", "override", "'ipu.splits=[a'", "YAML"),
]


@pytest.mark.parametrize(("override", "key", "value", "fix"), WRONG, ids=[w[0] for w in WRONG])
def test_a_wrong_value_is_named_with_what_was_expected(override, key, value, fix):
    with pytest.raises(UserError) as caught:
        loads(MINIMAL, [override])
    for part in (key, value, fix):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


PAIRS = [
    (["ipu.recomputation=pipeline"], "on one IPU there is no pipeline to recompute; set it to"),
    (
        ["ipu.recomputation=all", "ipu.splits=[layer2.0]"],
        "ipu.recomputation=all: in a pipeline PopART recomputes stages or nothing",
    ),
    (
        ["ipu.recomputation=standard", "ipu.recomputation_checkpoints=[stem]"],
        "pays no heed to them; set ipu.recomputation=all",
    ),
    (
        [
            "ipu.recomputation=none",
            "ipu.recomputation_checkpoints=[stem]",
            "ipu.splits=[layer2.0]",
        ],
        "ipu.recomputation=none (nothing) pays no heed to them; set ipu.recomputation=pipeline",
    ),
    (["ipu.overlap_io=true", "ipu.execution=sharded"], "ipu.overlap_io=True: it needs tiles"),
    (["ipu.overlap_io=true", "ipu.io_tiles=32"], "with no pipeline, not even of one stage"),
    (["ipu.merge_all_reduce=true"], "one replica has no gradients to sum with others"),
    (
        [
            "ipu.merge_all_reduce=true",
            "ipu.replication_factor=2",
            "ipu.popart.accumulateOuterFragmentSettings.schedule=1",
        ],
        "schedule=1: ipu.merge_all_reduce needs another schedule than Serial",
    ),
    (
        [
            "ipu.deterministic_workers=true",
            "ipu.engine.target.deterministicWorkers=false",
        ],
        "ipu.deterministic_workers sets it; leave one of them out",
    ),
    (["optimizer.name=adam", "optimizer.momentum=0.9"], "adam does not have it (sgd, sgd_combined"),
    (["optimizer.name=adam", "optimizer.betas=[0.9]"], "two numbers from 0 to below 1"),
    (["optimizer.momentum=0", "optimizer.nesterov=true"], "momentum above 0"),
    (
        ["schedule.name=step", "schedule.decay=0.1", "schedule.step_epochs=[60, 30]"],
        "schedule.step_epochs=[60.0, 30.0]: expected rising numbers",
    ),
    (
        ["optimizer.loss_scaling=8", "optimizer.initial_loss_scaling=16"],
        "initial_loss_scaling=16: expected loss_scaling (8) divided by a power of 2",
    ),
    (
        ["optimizer.loss_scaling=2e-38", "optimizer.initial_loss_scaling=1e38"],
        "initial_loss_scaling=1e+38: expected loss_scaling (2e-38) divided by a power of 2",
    ),
    (["optimizer.lr=1e300"], "optimizer.lr=1e+300: the device computes in float32"),
    (
        ["schedule.name=exponential", "schedule.decay=1e300", "schedule.decay_epochs=1e-300"],
        "schedule.decay=1e+300: in 3 epochs the learning rate grows beyond all numbers",
    ),
    (["data.workers=100000"], "data.workers=100000: expected a number from 0 to 1024"),
    (["name=" + 256 * "x"], "of up to 255 bytes"),
    (
        ["training.cutmix_lambda_low=0.5", "training.cutmix_lambda_high=0.4"],
        "cutmix_lambda_low=0.5: expected at most cutmix_lambda_high (0.4)",
    ),
    (
        ["training.mixup_alpha=0.2", "ipu.micro_batch_size=1"],
        "ipu.micro_batch_size=1: mix-up mixes the images of a micro-batch, of which there must",
    ),
    (
        [
            "training.mixup_alpha=0.2",
            "training.cutmix_lambda_low=0.65",
            "ipu.micro_batch_size=1",
        ],
        "mix-up and cut-mix mix the images of a micro-batch, of which there must be 2 or more",
    ),
    (
        [
            "ipu.precision=16.16",
            "optimizer.auto_loss_scaling=true",
            "optimizer.initial_loss_scaling=1",
        ],
        "leave one of it and auto_loss_scaling out",
    ),
    (["ipu.optimizer_state=sharded"], "there is one replica, and nothing to shard over"),
    (
        ["ipu.recomputation_checkpoints=[stem]"],
        "PopTorch recomputes nothing by itself; set ipu.recomputation=all",
    ),
]


@pytest.mark.parametrize(("overrides", "text"), PAIRS, ids=[p[1][:40] for p in PAIRS])
def test_keys_that_do_not_go_together_are_named(overrides, text):
    with pytest.raises(UserError) as caught:
        loads(MINIMAL, overrides)
    assert text in str(caught.value)


@pytest.mark.parametrize("key", ["name", "runs", "data.path", "training.init_from"])
def test_bytes_that_are_no_utf_8_are_refused_where_a_run_would_keep_them(key):
    with pytest.raises(UserError, match=rf"{key}='caf.udce9': expected UTF-8") as caught:
        loads(MINIMAL, [f"{key}=caf\udce9"])
    printable(str(caught.value)).encode()


@pytest.mark.parametrize("splits", [["layer2.0"], ["layer1.0", "layer2.0", "layer3.0"]])
def test_a_pipeline_needs_2s_minus_1_accumulations(splits):
    least = 2 * (len(splits) + 1) - 1
    listed = f"ipu.splits=[{','.join(splits)}]"
    loads(MINIMAL, [listed, f"ipu.gradient_accumulation={least}"])
    loads(MINIMAL, [listed, "ipu.gradient_accumulation=1", "ipu.execution=sharded"])
    with pytest.raises(UserError, match=rf"ipu.gradient_accumulation={least - 1}: .*={least} or"):
        loads(MINIMAL, [listed, f"ipu.gradient_accumulation={least - 1}"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is not set"),
        (MINIMAL.replace("epochs: 3", ""), "training.epochs is not set: expected passes"),
        ("a: [", "not valid YAML"),
        ("- a\n- b", "'key: value'"),
        ("name: a\nname: b", "duplicate key"),
        ("42", "'key: value'"),
        ("on: 1", "key True is unknown"),
        (MINIMAL + "runs: ${nowhere}", "key 'nowhere' not found.*expected .{KEY}"),
        (
            MINIMAL.replace("ipu: {", "ipu: {popart: '${oc.env:NONE_SUCH}', "),
            "NONE_SUCH is not set",
        ),
        (MINIMAL.replace("ipu: {", "ipu: {popart: '${none}', "), "key 'none' not found"),
        (MINIMAL + "runs: ${a", "expected .{KEY} with another key"),
    ],
)
def test_text_that_is_no_configuration(text, expected):
    with pytest.raises(UserError, match=expected):
        loads(text)


def test_a_value_may_be_made_of_others():
    assert loads(MINIMAL, ["name=${model.name}_${model.norm}"]).name == "resnetv2_8_gn4+pn"


def test_a_missing_file_names_the_nearest_there_is():
    with pytest.raises(UserError, match=r"configs/quikstart.yaml.*configs/quickstart.yaml"):
        load("configs/quikstart.yaml")


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="UTF-8"):
        load(path)


@pytest.mark.parametrize("value", ["1" + 400 * "0", "inf", "nan"])
def test_numbers_beyond_all_others_are_refused_by_key(value):
    with pytest.raises(UserError, match="patience"):
        load("configs/quickstart.yaml", [f"training.patience={value}"])
