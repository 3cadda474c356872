"""What an execution strategy demands of the number of micro-batches."""

from __future__ import annotations

from typing import List, Tuple

from .. import poptorch_core
from ..options import Options
from ..settings.execution_strategy import PipelinedExecution, ShardedExecution


def is_pipelined(options: Options) -> bool:
    """Tell whether stages work on different micro-batches at once."""
    strategy = options._execution_strategy
    return isinstance(strategy, PipelinedExecution) and not isinstance(strategy, ShardedExecution)


def stage_count(placements: List[Tuple[int, int, int]]) -> int:
    """Return the number of pipeline stages: the last one's number plus one."""
    return max(stage for stage, _, _ in placements) + 1


def check(placements: List[Tuple[int, int, int]], options: Options, training: bool) -> None:
    """Check that enough micro-batches are under way to fill the pipeline.

    Raises:
        poptorch.Error: too little gradient accumulation, or too few device iterations.

    """
    if not is_pipelined(options):
        return
    stages = stage_count(placements)
    if training:
        total = 2 * stages - 1
        if options.Training.gradient_accumulation < total:
            raise poptorch_core.createError(
                "poptorch.Options().Training.gradientAccumulation must be greater than or equal "
                f"to the number of pipeline stages ({total}) when using "
                f"poptorch.PipelinedExecution. Please note that a model with {stages} pipeline "
                f"stages in PopTorch will have an additional {stages - 1} stages when training.",
                layer="poptorch_cpp_error",
            )
    elif options.device_iterations < stages:
        raise poptorch_core.createError(
            "poptorch.Options().deviceIterations must be greater than or equal to the number of "
            f"pipeline stages ({stages}) when using PopTorch.PipelinedExecution.",
            layer="poptorch_cpp_error",
        )
