from __future__ import annotations

import pytest

from ipu_proxynorm.simulator import enums
from ipu_proxynorm.simulator.options import (
    ParallelPhasedExecution,
    Phase,
    PipelinedExecution,
    SerialPhasedExecution,
    ShardedExecution,
    Stage,
)

pytestmark = pytest.mark.simulator


def place(strategy, blocks):
    manager = strategy._stages_manager
    return [tuple(manager.beginStage(user_id, ipu)) for user_id, ipu in blocks]


def test_by_default_a_block_is_in_the_stage_of_its_ipu():
    blocks = [("a", 0), ("b", 1), ("c", 0)]
    assert place(PipelinedExecution(), blocks) == [(0, -1, 0), (1, -1, 1), (0, -1, 0)]


def test_auto_increment_opens_a_stage_for_every_new_block():
    strategy = PipelinedExecution(enums.AutoStage.AutoIncrement)
    blocks = [("a", 0), ("b", 1), ("c", 0), ("a", 0)]
    assert [stage for stage, _, _ in place(strategy, blocks)] == [1, 2, 3, 1]


def test_explicit_stages_and_their_ipus():
    strategy = PipelinedExecution("a", ["b", "c"], Stage("d").ipu(5))
    # Without an IPU of its own a block goes to the IPU of its stage's number.
    assert place(strategy, [("a", None), ("b", None), ("c", 3), ("d", 0)]) == [
        (0, -1, 0),
        (1, -1, 1),
        (1, -1, 3),
        (2, -1, 5),
    ]
    assert strategy.stage("c") is strategy.stage("b")
    with pytest.raises(AssertionError, match="Unknown Block 'x'"):
        place(strategy, [("x", 0)])
    with pytest.raises(AssertionError, match="Unknown block x"):
        strategy.stage("x")


def test_blocks_without_ids_are_numbered():
    manager = PipelinedExecution("0", "1")._stages_manager
    assert [manager.beginStage(None, None).stage for _ in range(2)] == [0, 1]
    manager.resetAutoId()
    assert manager.beginStage(None, None).stage == 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: PipelinedExecution("a", Stage("b", "a")), "a associated with more than one stage"),
        (lambda: Stage(0), "supposed to be strings"),
        (lambda: PipelinedExecution("a", [1]), "list of block IDs"),
        (lambda: place(PipelinedExecution(), [("a", None)]), "no IPU was specified for block a"),
        (lambda: SerialPhasedExecution(), "explicitly specify the phases"),
        (lambda: Phase("a", Stage("b")), "must either be block IDs"),
        (lambda: SerialPhasedExecution("a").phase(-1), "positive integers"),
        (lambda: Phase("a", "b").ipus(0, 1), "contains 1 stages but you provided 2"),
        (lambda: SerialPhasedExecution("a").setTensorsLiveness(1), "poptorch.Liveness"),
        (lambda: ParallelPhasedExecution("a").sendTensorsOffChipAfterFwd(1), "must be a bool"),
        (lambda: SerialPhasedExecution("a").useSeparateBackwardPhase(1), "needs a bool"),
    ],
)
def test_bad_layouts_are_refused(make, match):
    with pytest.raises(AssertionError, match=match):
        make()


def test_phases_place_their_stages():
    strategy = ParallelPhasedExecution([Stage("a"), Stage("b")], Phase("c", "d"), "e")
    strategy.phase(0).ipus(0, 2)
    strategy.phase(1).stage(0).ipu(1)
    assert place(strategy, [("a", None), ("b", None), ("d", None), ("e", 3)]) == [
        (-1, 0, 0),
        (-1, 0, 2),
        (-1, 1, 1),
        (-1, 2, 3),
    ]


def test_what_the_compiler_is_told():
    assert PipelinedExecution().backendOptions() == {"execution_mode": 0}
    assert ShardedExecution("a").backendOptions() == {"execution_mode": 1}
    serial = SerialPhasedExecution("a").setTensorsLiveness(enums.Liveness.OffChipAfterEachPhase)
    assert serial.useSeparateBackwardPhase().backendOptions() == {
        "execution_mode": 2,
        "separate_backward_phase": True,
        "tensors_liveness": 3,
        "serial_phases_execution": True,
    }
    parallel = ParallelPhasedExecution("a").sendTensorsOffChipAfterFwd()
    assert parallel.backendOptions()["tensors_liveness"] == 1
    assert parallel.sendTensorsOffChipAfterFwd(False).backendOptions()["tensors_liveness"] == 0
    assert parallel.backendOptions()["serial_phases_execution"] is False
