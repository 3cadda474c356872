"""What an execution strategy demands of the number of micro-batches, and of the stages."""

from __future__ import annotations

from typing import Dict, Mapping, Sequence, Set, Tuple

from ipu_proxynorm.stages import merged, micro_batches_needed

from .. import poptorch_core
from ..options import Options
from ..settings.execution_strategy import PipelinedExecution, ShardedExecution


def is_pipelined(options: Options) -> bool:
    """Tell whether stages work on different micro-batches at once."""
    strategy = options._execution_strategy
    return isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)


def check(
    stage_ipus: Sequence[int],
    placements: Mapping[Tuple[int, int, int], object],
    options: Options,
    training: bool,
) -> None:
    """Check that enough micro-batches are under way to fill the pipeline.

    Source: PopTorch ``popart_compiler/source/Compiler.cpp:675-701``.

    Args:
        stage_ipus: the IPU of each stage, see `ipu_proxynorm.stages.StageCount`.
        placements: the strategy's stage, phase and IPU of everything that has operators.
        options: the model's options.
        training: with a backward pass.

    Raises:
        poptorch.Error: too little gradient accumulation, too few device iterations, or stages that
            are on several IPUs or leave a number out.

    """
    if not is_pipelined(options) or not placements:  # nothing runs on an IPU: Compiler.cpp:545
        return
    stages = len(stage_ipus)
    total = micro_batches_needed(stages, training)
    if training:
        if options.Training.gradient_accumulation < total:
            raise poptorch_core.createError(
                "poptorch.Options().Training.gradientAccumulation must be greater than or equal "
                f"to the number of pipeline stages ({total}) when using "
                f"poptorch.PipelinedExecution. Please note that a model with {stages} pipeline "
                f"stages in PopTorch will have an additional {stages - 1} stages when training.",
                layer="poptorch_cpp_error",
            )
    elif options.device_iterations < total:
        raise poptorch_core.createError(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of "
            f"pipeline stages ({stages}) when using PopTorch.PipelinedExecution.",
            layer="poptorch_cpp_error",
        )
    _check_stages(placements)


def _check_stages(placements: Mapping[Tuple[int, int, int], object]) -> None:
    """Check that each stage of a pipeline is on one IPU, and that no number is left out.

    Source: PopART ``ir.cpp:641-665`` and ``ir.cpp:2887-2905``.
    """
    ipus: Dict[int, Set[int]] = {}
    for stage, _, ipu in placements:
        ipus.setdefault(stage, set()).add(ipu)
    if len(set().union(*ipus.values())) == 1:
        return
    for stage, on in ipus.items():
        if len(on) > 1:
            raise poptorch_core.createError(
                f"Ops have the same pipeline stage {stage}, but different virtual graph ids "
                f"{sorted(on)}. All ops with the same pipeline stage must also have the same "
                "virtual graph id: give all blocks of a stage one ipu_id",
                layer="popart_exception",
            )
    numbers = merged({stage: on.pop() for stage, on in ipus.items()})
    for number in range(len(numbers)):
        if number not in numbers:
            raise poptorch_core.createError(
                f"The set of pipeline stages for all Ops contains {len(numbers)} stages, but stage "
                f"{number} is missing: use IPUs without a gap, or "
                "poptorch.AutoStage.AutoIncrement",
                layer="popart_exception",
            )
