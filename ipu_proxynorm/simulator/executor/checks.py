"""What a wrapped model's options and program must satisfy."""

from __future__ import annotations

from typing import Optional, Set

import torch

from .. import _impl, enums, poptorch_core
from ..machine import ipus, pipeline
from ..options import Options
from ..settings import together
from ..settings.execution_strategy import PipelinedExecution, ShardedExecution
from ..trace import refusals
from ..trace.program import Program


def own_options(options: Optional[Options], training: bool) -> Options:
    """Return a copy of the options with the output mode settled; freeze the user's."""
    if options is None:
        own = Options()
    elif isinstance(options, Options):
        options._freeze()
        own = options.clone()
    else:
        raise _impl.createPoptorchError(
            f"Invalid type: 'options' is of type {type(options)} (Expected poptorch.Options)"
        )
    if own.defaultOutputMode():
        own.outputMode(enums.OutputMode.Final if training else enums.OutputMode.All)
    if not training and own.Training.gradient_accumulation != 1:
        message = (
            "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its "
            "default value (1) when running a poptorch.inferenceModel()."
        )
        if pipeline.is_pipelined(own):
            message += (
                " Use poptorch.Options().deviceIterations to process a sufficient number of "
                "batches each run for pipelined execution instead."
            )
        raise _impl.createPoptorchError(message)
    for anchor in own.anchored_tensors.values():
        if anchor[1]:  # the mode was left open
            anchor[2] = own.output_mode
            if anchor[2] == enums.OutputMode.EveryN:
                anchor[3] = own.output_return_period
    return own


def check_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimiser that holds a parameter which is not the model's.

    PopTorch ends in a ``KeyError`` (``_poplar_executor.py:817-828``).

    Raises:
        poptorch.Error: names the parameter by its place in the optimiser.

    """
    known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    for index, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            if parameter.data_ptr() not in known:
                raise _impl.createPoptorchError(
                    f"Parameter {position} of group {index} of the optimizer, of shape "
                    f"{tuple(parameter.shape)}, is not the model's: make the optimizer of "
                    "model.parameters(), after any change of the model."
                )


def check_machine(options: Options) -> None:
    """Refuse what the simulated machine cannot do.

    Raises:
        poptorch.Error: cycles are to be counted.

    """
    if options._Popart.options.get("instrumentWithHardwareCycleCounter"):
        raise _impl.createPoptorchError(
            "Cycle count logging is only supported on actual IPU hardware."
        )


def _check_offline(options: Options) -> None:
    if options.connection_type != enums.ConnectionType.Never:
        return
    if options.exists("ipu_id"):
        message = (
            "Offline compilation targeting a specific id not supported: leave out useIpuId or "
            "useOfflineIpuTarget."
        )
        refusals.report(_impl.createPoptorchError(message))
    if options.exists("use_model") and options.use_model:
        message = (
            "ConnectionType.Never / poptorch.Options.useOfflineIpuTarget not supported for the IPU "
            "model: leave out useIpuModel."
        )
        refusals.report(_impl.createPoptorchError(message))


# Those that poplibs adds up (lib/popops/codelets/elemwiseBinaryCodelets.cpp:951).
_SUMMED = (torch.float16, torch.float32, torch.int32, torch.int64, torch.float64)


def _check_returns(program: Program, options: Options, stages: int) -> None:
    """Check what returns every N device iterations, or as a sum.

    Source: PopART ``dataflow.cpp:218-231``, ``popx/irlowering.cpp:3186-3190`` and ``3784``.
    """
    returns = {name: anchor[2:] for name, anchor in options.anchored_tensors.items()}
    computed = [output.dtype for output in program.device_outputs if not output.constant]
    if computed:
        returns["the outputs"] = [options.output_mode, options.output_return_period]
    unsummed = [str(dtype) for dtype in computed if dtype not in _SUMMED]
    if unsummed and options.output_mode == enums.OutputMode.Sum:
        message = (
            f"OutputMode.Sum adds up floats and 32-bit integers only but an output is of "
            f"{unsummed[0]}: return output.int()."
        )
        refusals.report(poptorch_core.createError(message, layer="poplar_error"))
    for name, (mode, period) in returns.items():
        if mode != enums.OutputMode.EveryN:
            continue
        if options.device_iterations % period:
            message = (
                f"Return period must be a factor of the number of batches per step: {name} return "
                f"every {period} of deviceIterations({options.device_iterations})."
            )
            refusals.report(poptorch_core.createError(message, layer="popart_exception"))
        elif stages > 1:
            message = (
                f"AnchorReturnType::EVERYN is not valid for pipelined models: {name} return every "
                f"{period} device iterations of {stages} stages. Use OutputMode.All and leave out "
                "what is not needed."
            )
            refusals.report(poptorch_core.createError(message, layer="popart_exception"))


def _check_proportions(options: Options, ipus_used: Set[int]) -> None:
    """Check the proportions of memory of the IPUs that have operators.

    Source: PopTorch ``Compiler.cpp:129``, PopART ``builder.cpp:1782``.
    """
    for ipu, proportion in options.available_memory_proportion.items():
        if ipu in ipus_used and not 0 < proportion <= 1:
            message = (
                f"availableMemoryProportion must be in (0,1] but setAvailableMemoryProportion has "
                f"{proportion} for IPU{ipu}"
            )
            refusals.report(poptorch_core.createError(message, layer="popart_exception"))


def _check_names(options: Options) -> None:
    """Check options by name and type, as where they are handed to PopART (poptorch.cpp:516)."""
    try:
        poptorch_core._validateOptions(options.toDict())
    except poptorch_core.Error as error:
        refusals.report(error)


def check_program(program: Program, options: Options, training: bool) -> None:
    """Refuse what the machine cannot do with a program.

    Raises:
        poptorch.Error: an option that the compiler does not have, too many IPUs, a pipeline not
            filled, buffers out of step, no gradients for automatic loss scaling to watch, a return
            period or a proportion of memory that does not fit, or session options that contradict
            each other.

    """
    _check_names(options)
    _check_offline(options)
    # PopTorch's LowerToPopartFactories.cpp:42, SessionOptions.cpp:468: replicas that all have the
    # same inputs stay in step.
    differ = options.input_group_size < options.replication_factor
    if program.tracked_buffers and differ and options.broadcast_buffers:
        written = [f"{name} ({where})" for name, where in program.tracked_buffers.items()]
        refusals.report(
            _impl.createPoptorchError(
                "PopTorch does not support broadcasting buffers. If your model is able to "
                "tolerate buffers becoming out of sync between replicas, you can disable buffer "
                "broadcasting using poptorch.Options.broadcastBuffers(False). The model writes to "
                f"{', '.join(written)}."
            )
        )
    if program.gradient_counts is not None and not program.gradient_counts.tracked:
        refusals.report(
            poptorch_core.createError(
                "[AutomaticLossScale transform] No tracked gradient tensors of type fp16 were "
                "found: automatic loss scaling watches float16 gradients only. Give the model "
                "float16 inputs or weights, or call "
                "poptorch.Options().Training.setAutomaticLossScaling(False).",
                layer="popart_exception",
            )
        )
    pipelined = pipeline.is_pipelined(options)
    _check_returns(program, options, len(program.stage_ipus) if pipelined else 1)
    _check_proportions(options, {ipu for _, _, ipu in program.placements})
    used = ipus.ipus_per_replica(program.placements)
    strategy = options._execution_strategy
    for error in together.refusals(
        options._popart.options,
        ipus=used,
        pipelined=pipelined and used > 1,
        phased=not isinstance(strategy, (PipelinedExecution, ShardedExecution)),
        training=training,
        accumulation=options.Training.gradient_accumulation,
    ):
        refusals.report(error)
    try:
        ipus.ipus_needed(program.placements, options)
    except poptorch_core.Error as error:
        refusals.report(error)
    pipeline.check(program.stage_ipus, program.placements, options, training)
