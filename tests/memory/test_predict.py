"""Verdicts, intervals and advice, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torchvision
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory import calibration
from ipu_proxynorm.memory.blocks import placement
from ipu_proxynorm.models import create_model

TRAINING = memory.Layout(
    optimizer=memory.optimizer_memory("sgd"), gradient_accumulation=8, replicas=4
)


@pytest.fixture(scope="module")
def resnet50():
    with torch.device("meta"):
        network = torchvision.models.resnet50()
    return memory.capture(network, [torch.zeros(64, 3, 224, 224)], precision="16.16")


def test_resnet50_at_micro_batch_64_is_refused_with_advice_that_makes_it_fit(resnet50):
    prediction = memory.predict_capture(resnet50, TRAINING, advise=None)
    assert prediction.verdict.name == memory.OUT_OF_MEMORY
    assert len(prediction.advice) == 3
    assert [a.saves for a in prediction.advice] == sorted(
        (a.saves for a in prediction.advice), reverse=True
    )
    best = prediction.advice[0]
    followed = memory.predict_capture(resnet50.with_micro_batch(best.micro_batch), best.layout)
    assert followed.verdict.name == memory.FITS
    before, after = (max(b.used for b in p.ipus) for p in (prediction, followed))
    assert best.saves == before - after


def test_every_piece_of_advice_saves_what_it_says(resnet50):
    prediction = memory.predict_capture(resnet50.with_splits(["layer2.0"]), TRAINING, advise=None)
    for advice in prediction.advice:
        changed = resnet50.with_splits(advice.splits or ["layer2.0"])
        after = memory.predict_capture(changed.with_micro_batch(advice.micro_batch), advice.layout)
        saved = max(b.used for b in prediction.ipus) - max(b.used for b in after.ipus)
        assert saved == advice.saves > 0
        assert after.verdict.utilisation == advice.utilisation


def test_the_verdict_is_the_fullest_ipus_and_lies_in_its_interval(resnet50, monkeypatch):
    cut = resnet50.with_micro_batch(8).with_splits(["layer2.0"])
    verdict = memory.predict_capture(cut, TRAINING).verdict
    assert verdict.low <= verdict.utilisation <= verdict.high
    assert verdict.low < verdict.high
    # An ensemble that says more than its centre.
    central, *others = memory.ensemble()
    more = [dataclasses.replace(other, program=central.program + 5e7) for other in others]
    monkeypatch.setattr(calibration, "ensemble", lambda: (central, *more))
    higher = memory.predict_capture(cut, TRAINING).verdict
    assert higher.low == higher.utilisation == verdict.utilisation < higher.high


def test_more_of_anything_never_takes_less(resnet50):
    def used(micro_batch, **changes):
        capture = resnet50.with_micro_batch(micro_batch)
        layout = dataclasses.replace(TRAINING, **changes)
        return memory.predict_capture(capture, layout).verdict.utilisation

    sizes = [used(n) for n in (1, 2, 4, 8, 16, 32)]
    assert sizes == sorted(sizes)
    assert used(8, precision="16.32") > used(8)
    kept = ("layer1.2", "layer2.3", "layer3.5")
    assert used(8) > used(8, recomputation="checkpoints", checkpoints=kept)
    assert used(8, chip="mk1") > 2 * used(8)
    assert used(8, chip="bow") == used(8)


UNLIKE = {  # no ResNet, no EfficientNet: nothing of theirs was calibrated on
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(num_classes=10),
    "densenet": lambda: torchvision.models.DenseNet(8, (3, 3), 16, num_classes=10),
    "vit": lambda: torchvision.models.VisionTransformer(64, 16, 3, 2, 32, 64, num_classes=10),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", UNLIKE)
def test_other_networks_take_more_with_every_image(name, training):
    with torch.device("meta"):
        network = UNLIKE[name]()
    images = torch.zeros(4, 3, 64, 64)
    capture = memory.capture(network, [images], training=training, precision="16.16")
    layout = TRAINING if training else memory.Layout()
    places = [boundary.layer for boundary in memory.boundaries(capture)]
    for stages in (1, 4):
        splits = [places[len(places) * k // stages] for k in range(1, stages)]
        cut = capture.with_splits(splits)
        sweep = [
            memory.predict_capture(cut.with_micro_batch(size), layout) for size in (1, 2, 7, 64)
        ]
        for less, more in zip(sweep, sweep[1:]):
            assert all(a.used < b.used for a, b in zip(less.ipus, more.ipus))
            assert all(term >= 0 for ipu in more.ipus for term in ipu.terms.values())
            assert more.verdict.low <= more.verdict.high
        assert len(sweep[0].ipus) == stages
        assert sweep[-1].replica_bytes > sweep[0].replica_bytes


def test_a_program_for_poptorch_gives_its_own_layout():
    model = create_model("resnetv2_20", norm="gn4")
    poptorch.BeginBlock(model.layer2[0], "second", ipu_id=1)
    options = poptorch.Options()
    options.replicationFactor(4)
    options.Training.gradientAccumulation(6)
    options.setAvailableMemoryProportion({"IPU0": 0.2, "IPU1": 0.3})
    options.Precision.setPartialsType(torch.half)
    options.TensorLocations.numIOTiles(32)
    options.TensorLocations.setOptimizerLocation(
        poptorch.TensorLocationSettings().useOnChipStorage(False)
    )
    optimizer = poptorch.optim.AdamW(model.parameters(), lr=0.1, accum_type=torch.float16)
    prediction = memory.predict(model, options, [torch.zeros(2, 3, 32, 32)], optimizer=optimizer)
    assert prediction.layout == memory.Layout(
        precision="32.32",
        optimizer=memory.OptimizerMemory("adamw", accumulator_bytes=2, state_bytes=8),
        optimizer_location="off-chip",
        replicas=4,
        gradient_accumulation=6,
        available_memory_proportion=(0.2, 0.3),
        half_partials=True,
        io_tiles=32,
    )
    assert [ipu.stages for ipu in prediction.ipus] == [(0,), (1,)]
    assert prediction.verdict.name == memory.FITS
    assert prediction.advice == ()


def test_sharded_execution_keeps_what_it_saves_and_pipelines_recompute():
    options = poptorch.Options()
    assert memory.read_options(options).recomputation == "stage"
    options._Popart.set("autoRecomputation", 0)
    assert memory.read_options(options).recomputation == "none"
    sharded = poptorch.Options()
    sharded.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.AutoIncrement))
    layout = memory.read_options(sharded)
    assert (layout.schedule, layout.recomputation) == ("sequential", "none")


def test_what_a_program_asks_of_the_compiler_is_read_off_its_options():
    options = poptorch.Options().useOfflineIpuTarget(21).enableStableNorm(True)
    options.setExecutionStrategy(poptorch.ShardedExecution())
    options._Popart.set("engineOptions", {"opt.internalExchangeOptimisationTarget": "memory"})
    layout = memory.read_options(options)
    assert (layout.chip, layout.stable_norm, layout.exchange) == ("c600", True, "memory")
    kinds = ((0, "none"), (1, "standard"), (2, "norms"), (4, "checkpoints"))
    for explicit in (False, True):
        options._Popart.set("explicitRecomputation", explicit)
        for value, expected in kinds:
            options._Popart.set("autoRecomputation", value)
            layout = memory.read_options(options)
            assert layout.recomputation == expected
            assert layout.keeps_last_segment == (value == 4 and not explicit)


@pytest.mark.parametrize(
    ("read", "missing"),
    [
        (memory.read_options, "replication_factor"),
        (memory.read_options, "_execution_strategy"),
        (memory.read_options, "_Popart"),
        (placement, "_execution_strategy"),
    ],
)
def test_options_that_lack_what_poptorchs_have_are_refused(read, missing):
    class Renamed(poptorch.Options):
        def __getattribute__(self, name):
            if name == missing:
                raise AttributeError(f"Invalid attribute {name}.")
            return super().__getattribute__(name)

        def __getattr__(self, name):
            if name == missing:
                raise AttributeError(f"Invalid attribute {name}.")
            return super().__getattr__(name)

    with pytest.raises(UserError, match=f"elsewhere than 3.4 does .*{missing}.*memory.Layout"):
        read(Renamed().replicationFactor(4))


def test_ipus_of_blocks_are_those_that_poptorch_gives_them():
    options = poptorch.Options()
    stages = [poptorch.Stage("first"), poptorch.Stage("second").ipu(3)]
    options.setExecutionStrategy(poptorch.PipelinedExecution(*stages))
    place = placement(options)
    assert place("second", 0) == 3
    assert place("first", 2) == 2
    assert place("first", None) == 0
    options.setExecutionStrategy(poptorch.ShardedExecution(poptorch.AutoStage.SameAsIpu))
    assert placement(options)(None, 2) == 2


def test_a_model_of_several_types_keeps_them():
    model = nn.Sequential(nn.Linear(8, 8).half(), _Upcast(), nn.Linear(8, 8))
    inputs = [torch.zeros(2, 8, dtype=torch.half)]
    captured = memory.predict(model, poptorch.Options(), inputs).capture
    made = [captured.tensors[o.outputs[0]].bytes for o in captured.operators if o.passes]
    assert made == [2 * 8 * 2, 2 * 8 * 4]


class _Upcast(nn.Module):
    def forward(self, x):
        return x.float()


def test_proxy_norm_is_captured_in_the_operators_of_an_ipu():
    """On an IPU there is no fused backward: its plain operators save more than a norm's."""
    images = [torch.zeros(4, 3, 32, 32)]
    with_proxy, without = (
        memory.capture(create_model("resnetv2_8", norm=norm), images, precision="16.16")
        for norm in ("gn4+pn", "gn4")
    )
    assert not any("Proxy" in o.name for o in with_proxy.operators)
    assert with_proxy.saved_bytes() > without.saved_bytes()
    assert with_proxy.macs() == without.macs()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chip": "mk3"}, "chip 'mk3' is unknown: did you mean 'mk"),
        ({"replicas": 0}, "replicas=0: expected at least 1"),
        ({"precision": "8.8"}, "precision '8.8' is unknown"),
        ({"io_tiles": 1472}, "io_tiles=1472: expected 0 to 1471"),
        ({"available_memory_proportion": (1.5,)}, "available_memory_proportion=1.5: expected 0"),
    ],
)
def test_a_layout_that_cannot_be_is_refused_in_a_sentence(changes, message):
    with pytest.raises(UserError, match=message):
        memory.Layout(**changes)


def test_inputs_and_models_that_cannot_be_are_refused_in_a_sentence():
    with pytest.raises(UserError, match="expected at least one tensor"):
        memory.predict(nn.Linear(2, 2), memory.Layout(), [])
    frozen = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="returns nothing that has a gradient"):
        memory.predict(frozen, TRAINING, [torch.zeros(1, 2)])
    with pytest.raises(UserError, match="optimiser Adagrad: its state is not known"):
        memory.read_optimizer(torch.optim.Adagrad(nn.Linear(2, 2).parameters()))
    with pytest.raises(UserError, match="micro-batch 0: expected at least 1"):
        memory.capture(nn.Linear(2, 2), [torch.zeros(4, 2)]).with_micro_batch(0)


def test_boundaries_are_where_one_tensor_crosses(resnet50):
    names = [boundary.layer for boundary in memory.boundaries(resnet50)]
    blocks = [f"layer{g}.{i}" for g, n in enumerate((3, 4, 6, 3), 1) for i in range(n)]
    assert [name for name in names if name.startswith("layer")] == blocks
    crossing = {b.layer: b.bytes for b in memory.boundaries(resnet50)}
    assert crossing["layer2.0"] == 64 * 256 * 56 * 56 * 2


def test_the_ensemble_is_of_many_and_physical():
    members = memory.ensemble()
    assert len(members) > 10
    for member in members:
        assert member.imbalance > 1
        assert all(value > 0 for value in dataclasses.asdict(member).values())


def test_float32_takes_twice_the_temporaries_as_a_vendors_test_knows():
    """Graphcore's tests assert that the first runs out of memory, and that the second runs."""
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        network = torchvision.models.resnext50_32x4d().eval()
    images = [torch.empty(20, 3, 224, 224, device="meta")]
    used = {}
    for proportion in (0.8, 0.35):
        layout = memory.Layout(
            precision="32.32", available_memory_proportion=(proportion,), optimizer=None
        )
        found = memory.predict(network, layout, images, training=False, advise=False)
        used[proportion] = found.verdict.utilisation
    assert used[0.8] > 1
    assert used[0.35] < 0.85
