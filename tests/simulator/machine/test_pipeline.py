"""Blocks, stages and what a pipeline demands; schedules as data, text and picture."""

from __future__ import annotations

import copy
import io
import pickle
from xml.etree import ElementTree

import pytest
import torch

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator import schedule

pytestmark = pytest.mark.simulator


class Stages(torch.nn.Module):
    """Layers a, b, c on IPUs 0, 1, 2."""

    def __init__(self, ipus=(0, 1, 2)):
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(4, 4) for _ in range(3))
        for name, ipu in zip("abc", ipus):
            poptorch.BeginBlock(getattr(self, name), name, ipu_id=ipu)

    def forward(self, x, target=None):
        y = self.c(self.b(self.a(x).relu()).relu())
        return y if target is None else torch.nn.functional.mse_loss(y, target)


def training(accumulation, strategy=None, replicas=1):
    options = poptorch.Options().replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    if strategy is not None:
        options.setExecutionStrategy(strategy)
    return poptorch.trainingModel(Stages(), options)


@pytest.fixture(autouse=True)
def on_the_ipu_model(monkeypatch):
    """Three stages are no power of 2 of IPUs; the IPU Model takes any number."""
    monkeypatch.setenv("POPTORCH_IPU_MODEL", "1")


def test_a_pipeline_must_be_filled():
    x = torch.ones(4, 4)
    with pytest.raises(poptorch.Error, match=r"pipeline stages \(5\) .* model with 3 pipeline"):
        training(4)(x, x)
    training(5)(torch.ones(5, 4), torch.ones(5, 4))
    for unpipelined in (
        poptorch.ShardedExecution(),
        poptorch.SerialPhasedExecution("a", "b", "c"),
        poptorch.ParallelPhasedExecution("a", "b", "c"),
    ):
        training(1, unpipelined)(x, x)
        options = poptorch.Options().setExecutionStrategy(unpipelined)
        assert poptorch.inferenceModel(Stages(), options)(x).shape == (4, 4)
    with pytest.raises(poptorch.Error, match=r"deviceIterations must be greater .* stages \(3\)"):
        poptorch.inferenceModel(Stages(), poptorch.Options().deviceIterations(2))(x)
    poptorch.inferenceModel(Stages(), poptorch.Options().deviceIterations(4))(x)


def ran(ipus, accumulation, auto_stage):
    """Train a layer per IPU once, and return the executor."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4) for _ in ipus)
            for number, (layer, ipu) in enumerate(zip(self.layers, ipus)):
                poptorch.BeginBlock(layer, f"layer{number}", ipu_id=ipu)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return poptorch.identity_loss(x.square(), "mean")

    options = poptorch.Options()
    options.setExecutionStrategy(poptorch.PipelinedExecution(auto_stage))
    options.Training.gradientAccumulation(accumulation)
    executor = poptorch.trainingModel(Net(), options)
    executor(torch.ones(accumulation, 4))
    return executor


@pytest.mark.parametrize("auto_stage", list(poptorch.AutoStage))
@pytest.mark.parametrize(
    ("ipus", "stages"),
    [
        ((0, 1), [0, 1]),
        ((0, 0, 1, 1), [0, 1]),  # a block per layer
        ((0, 1, 0), [0, 1, 0]),
        ((1, 1), [0, 1]),  # the program starts on IPU 0 nevertheless
    ],
)
def test_stages_are_switches_of_ipu_and_one(ipus, stages, auto_stage):
    """Source: PopTorch's Compiler.cpp:1286-1296 and CompilerImpl.cpp:478-494."""
    least = 2 * len(stages) - 1
    with pytest.raises(poptorch.Error, match=rf"number of pipeline stages \({least}\)"):
        ran(ipus, least - 1, auto_stage)
    executor = ran(ipus, least, auto_stage)
    assert executor._compiled().program.stage_ipus == stages
    assert len(schedule.of(executor).steps) == least + 2 * (len(stages) - 1)
    placed = [o.stage for o in schedule.operators(executor) if o.name == "addmm"]
    assert placed == {4: [0, 0, 1, 1], 3: [0, 1, 2]}.get(len(ipus), [1, 1] if ipus[0] else [0, 1])


def test_stages_that_popart_refuses():
    """Source: PopART's ir.cpp:641-665 and 2887-2905."""
    with pytest.raises(poptorch.Error, match="contains 2 stages, but stage 1 is missing"):
        ran((0, 2), 3, poptorch.AutoStage.SameAsIpu)
    ran((0, 2), 3, poptorch.AutoStage.AutoIncrement)
    strategy = poptorch.PipelinedExecution(poptorch.Stage("a", "b"), poptorch.Stage("c"))
    with pytest.raises(poptorch.Error, match=r"same pipeline stage 0, .* ids \[0, 1\]"):
        training(5, strategy)(torch.ones(5, 4), torch.ones(5, 4))


def test_accumulation_is_for_training():
    options = poptorch.Options()
    options.Training.gradientAccumulation(2)
    with pytest.raises(poptorch.Error, match=r"gradientAccumulation to 1 .*deviceIterations to"):
        poptorch.inferenceModel(Stages(), options)
    sharded = options.clone().setExecutionStrategy(poptorch.ShardedExecution())
    with pytest.raises(poptorch.Error, match=r"gradientAccumulation to 1 ") as caught:
        poptorch.inferenceModel(Stages(), sharded)
    assert "deviceIterations" not in caught.value.message  # which only fill pipelines


def test_results_do_not_depend_on_the_strategy():
    x, model = torch.randn(5, 4), Stages()
    expected = model(x)
    explicit = poptorch.PipelinedExecution("a", "b", "c")
    phases = poptorch.SerialPhasedExecution("a", "b", "c")
    increasing = poptorch.PipelinedExecution(poptorch.AutoStage.AutoIncrement)
    for strategy in (explicit, phases, increasing, poptorch.ShardedExecution()):
        options = poptorch.Options().deviceIterations(5).setExecutionStrategy(strategy)
        torch.testing.assert_close(poptorch.inferenceModel(model, options)(x), expected)


def test_results_of_control_flow_do_not_depend_on_blocks():
    def forward(flag, x):
        with poptorch.Block("a", ipu_id=0):
            (x,) = poptorch.for_loop(3, lambda y: y * 2, [x])
        with poptorch.Block("b", ipu_id=1):
            (x,) = poptorch.cond(flag, lambda y: y + 1, [x], lambda y: y - 1, [x])
            return x

    options = poptorch.Options().deviceIterations(2)
    for strategy in (poptorch.PipelinedExecution("a", "b"), poptorch.ShardedExecution("a", "b")):
        model = poptorch.inferenceModel(forward, options.clone().setExecutionStrategy(strategy))
        flags = torch.tensor([[True], [False]])
        assert model(flags, torch.tensor([1.0, 2.0])).tolist() == [9, 15]


def test_a_block_may_start_without_an_end():
    def forward(x):
        x = torch.sin(x)
        poptorch.Block.start("a", ipu_id=1)
        x = torch.cos(x)
        poptorch.Block.start("b", ipu_id=2)
        return torch.tanh(torch.relu(x))

    executor = poptorch.inferenceModel(forward, poptorch.Options().deviceIterations(3))
    x = torch.randn(3)
    torch.testing.assert_close(executor(x), torch.tanh(torch.relu(torch.cos(torch.sin(x)))))
    ipus = {operator.name: operator.ipus for operator in schedule.operators(executor)}
    expected = {"sin": (0,), "cos": (1,), "relu": (2,), "tanh": (2,)}
    assert {name: ipus[name] for name in expected} == expected


def test_where_each_block_runs():
    executor = training(5)
    executor.compile(torch.ones(5, 4), torch.ones(5, 4))
    assert [(*block[:2], block.ipu) for block in executor.blockPlacements()] == [
        ("a", 0, 0),
        ("b", 1, 1),
        ("c", 2, 2),
    ]


def test_after_the_end_of_a_block_another_must_begin():
    def forward(x):
        with poptorch.Block(ipu_id=0):
            x = x + 1
        return x + 1

    with pytest.raises(poptorch.Error, match="No active Block"):
        poptorch.inferenceModel(forward)(torch.ones(1))
    blocks = poptorch.inferenceModel(lambda x: poptorch.BlockFunction("f", 0)(lambda y: y)(x))
    assert blocks(torch.ones(1)).item() == 1


def test_begin_block_is_a_hook():
    layer = torch.nn.Linear(2, 2)
    names = list(layer.state_dict())
    assert poptorch.BeginBlock(layer, user_id=1, ipu_id=2) is layer
    assert list(layer.state_dict()) == names
    assert "BeginBlock(user_id=1, ipu_id=2)" in poptorch.module_repr(layer)
    with pytest.raises(poptorch.Error, match="module has already been assigned to a block"):
        poptorch.BeginBlock(layer)
    file = io.BytesIO()
    torch.save(copy.deepcopy(layer), file)
    poptorch.removeBlocks(layer)
    poptorch.BeginBlock(layer)


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copies_have_the_blocks_too(copied):
    model = copied(Stages((0, 1, 1)))
    executor = poptorch.inferenceModel(model, poptorch.Options().deviceIterations(2))
    executor.compile(torch.ones(2, 4))
    placed = [(block[0], block.ipu) for block in executor.blockPlacements()]
    assert placed == [("a", 0), ("b", 1), ("c", 1)]
    poptorch.removeBlocks(model)
    again = poptorch.inferenceModel(model)
    again.compile(torch.ones(1, 4))
    assert again.blockPlacements() == []


def test_schedule_of_a_training_pipeline():
    """Source: PopTorch's count of 2S − 1 stages, the last forward and backward being one."""
    plan = schedule.pipelined([0, 1, 2], 5, training=True)
    seen = {}
    for number, step in enumerate(plan.steps):
        for ipu, work in step.items():
            for item in work:
                assert item.stage == ipu
                seen[item.stage, item.micro_batch, item.backward] = number
    assert len(seen) == 3 * 5 * 2
    for micro_batch in range(5):
        order = [seen[s, micro_batch, False] for s in range(3)]
        order += [seen[s, micro_batch, True] for s in (1, 0)]
        assert order == list(range(micro_batch, micro_batch + 5))
        assert seen[2, micro_batch, True] == seen[2, micro_batch, False]
    assert len(plan.steps) == 5 + 4
    assert plan.bubble_fraction == pytest.approx(4 / 9)
    assert [plan.phase_of(step) for step in (0, 4, 8)] == ["ramp-up", "steady", "ramp-down"]


def test_schedules_of_inference_and_of_sharding():
    plan = schedule.pipelined([0, 1], 4, training=False)
    assert len(plan.steps) == 5
    assert plan.bubble_fraction == pytest.approx(1 / 5)
    sharded = schedule.sequential([0, 1], 2, training=True)
    assert [str(w) for s in sharded.steps for work in s.values() for w in work] == [
        *("f0", "f0", "b0", "b0", "f1", "f1", "b1", "b1")
    ]
    assert sharded.bubble_fraction == pytest.approx(1 / 2)


def test_schedule_of_a_model_as_text_and_picture():
    executor = training(5)
    executor.compile(torch.ones(5, 4), torch.ones(5, 4))
    plan = schedule.of(executor)
    rows = plan.as_text().splitlines()
    assert rows[1].split()[2:6] == ["f0", "f1", "f2", "f3"]
    assert rows[-1] == "bubble: 44.4%"
    picture = ElementTree.fromstring(plan.as_svg())
    rectangles = [element for element in picture.iter() if element.tag.endswith("rect")]
    assert len(rectangles) == 30 + 2  # a legend of two
    words = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert {"step", "IPU 2", "ramp-up", "steady", "ramp-down", "forward", "backward"} <= set(words)
    assert "of micro-batch n; bubble 44.4%" in words


def test_every_operator_has_its_stage_ipu_and_line():
    executor = training(5, replicas=2)
    executor.compile(torch.ones(10, 4), torch.ones(10, 4))
    operators = schedule.operators(executor)
    matrix_products = [o for o in operators if o.name in ("addmm", "mm")]
    assert [(o.stage, o.backward) for o in matrix_products] == [
        (0, False), (1, False), (2, False), (2, True), (2, True), (1, True), (1, True), (0, True),
    ]  # fmt: skip
    assert {o.stage: o.ipus for o in matrix_products} == {0: (0, 3), 1: (1, 4), 2: (2, 5)}
    assert all(o.line.startswith(__file__) for o in matrix_products)
