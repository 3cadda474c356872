"""The names and types that the compiler accepts for serialised options."""

from __future__ import annotations

from typing import Any, Callable, Dict, FrozenSet

from .._errors import Error, createError
from .._logging import logger


def _names(text: str) -> FrozenSet[str]:
    return frozenset(text.split())


_BOOL = _names("""
    auto_round_num_ipus use_model serial_phases_execution separate_backward_phase
    broadcast_buffers enableExplicitIR enableInplaceAmbiguityChecking enableLoadAndOffloadRNGState
    batchSerializationSettings.concatOnVirtualGraphChange
    batchSerializationSettings.concatOnExecutionPhaseChange
    batchSerializationSettings.concatOnPipelineStageChange
    strictOpVersions opxAliasChecking opxModifyChecking dotOpNames exportPoplarComputationGraph
    exportPoplarVertexGraph separateCallOpPdfs enableOutlining enableOutliningCopyCostPruning
    rearrangeAnchorsOnHost rearrangeStreamsOnHost enablePrefetchDatastreams enableNonStableSoftmax
    enableReplicatedGraphs enableGradientAccumulation instrumentWithHardwareCycleCounter
    enablePipelining disableGradAccumulationTensorStreams disableOptimizerStateTensorStreams
    compileEngine constantWeights enableEngineCaching enableMergeExchange
    enableFloatingPointChecks enableStochasticRounding ensureFp32LossScaleTensor
    explicitRecomputation enableExplicitMainLoops useHostCopyOps aliasZeroCopy delayVarUpdates
    enableFullyConnectedPass enableSerializedMatmuls enableStableNorm decomposeGradSum
    enableDistributedReplicatedGraphs groupHostSync automaticLossScalingSettings.enabled
    enableSupportedDataTypeCasting groupNormStridedChannelGrouping
    scheduleNonWeightUpdateGradientConsumersEarly
    replicatedCollectivesSettings.prepareScheduleForMergingCollectives
    replicatedCollectivesSettings.mergeAllReduceCollectives
""")
_INT = _names("""
    device_iterations num_distributed_processes distributed_process_id ipu_version ipu_id
    gradient_accumulation output_return_period replication_factor input_group_size input_cgt
    execution_mode tensors_liveness output_mode connection_type max_repeat_logs
    accumulateOuterFragmentSettings.schedule accumulation_and_replication_reduction_type
    sync_pattern random_seed autodiffSettings.stitchStrategy
    batchSerializationSettings.transformContext batchSerializationSettings.method
    batchSerializationSettings.batchSchedule autoRecomputation mergeVarUpdate virtualGraphMode
    syntheticDataMode subgraphCopyingStrategy accumulationAndReplicationReductionType
    meanAccumulationAndReplicationReductionStrategy
    automaticLossScalingSettings.gradientTensorTrackingMethod
    executionPhaseSettings.phases executionPhaseSettings.stages batchSerializationSettings.factor
    firstDotOp finalDotOp numIOTiles mergeVarUpdateMemThreshold looseThresholdAtPeak
    accumulationFactor swapLimitScheduler globalReplicationFactor globalReplicaOffset
    defaultBufferingDepth defaultPrefetchBufferingDepth compilationProgressTotal
    transitiveClosureOptimizationThreshold automaticLossScalingSettings.updatePeriod
""")
_FLOAT = _names("""
    outlineSequenceBreakCost outlineThreshold timeLimitScheduler
    automaticLossScalingSettings.thresholdUpperCountProportion
    automaticLossScalingSettings.binEdgeLocation
""")
_STRING = _names("""
    log_dir saveInitializersToFile logDir model_name cachePath partialsTypeMatMuls
    customCodeletCompileFlags serializedPoprithmsShiftGraphsDir kahnTieBreaker
""")
_CONTAINER = _names("""
    accumulateOuterFragmentSettings.excludedVirtualGraphs dotChecks hardwareInstrumentations
    customCodelets engineOptions reportOptions convolutionOptions matmulOptions lstmOptions
    gclOptions updatableNamedBuffers
""")
_LOCATION = _names("""
    location_activation location_weight location_optimizer location_accumulator
""")
_LOCATION_KEYS = _names("""
    minElementsForOffChip minElementsForReplicatedTensorSharding onChip
    useReplicatedTensorSharding useIOTilesToLoad useIOTilesToStore
""")

# PopART's enumerations and how many values each has (SessionOptions.cpp:287-292, 313-330).
_VALUES = {
    "accumulateOuterFragmentSettings.schedule": ("popart::AccumulateOuterFragmentSchedule", 4),
    "autodiffSettings.stitchStrategy": ("AutodiffStitchStrategy", 4),
    "batchSerializationSettings.transformContext": ("BatchSerializationTransformContext", 2),
    "batchSerializationSettings.method": ("BatchSerializationMethod", 3),
    "batchSerializationSettings.batchSchedule": ("BatchSerializationBatchSchedule", 4),
    "autoRecomputation": ("RecomputationType", 5),
    "mergeVarUpdate": ("MergeVarUpdateType", 4),
    "virtualGraphMode": ("VirtualGraphMode", 4),
    "syntheticDataMode": ("SyntheticDataMode", 4),
    "subgraphCopyingStrategy": ("SubgraphCopyingStrategy", 2),
    "accumulationAndReplicationReductionType": ("ReductionType", 3),
    "meanAccumulationAndReplicationReductionStrategy": ("MeanReductionStrategy", 2),
    "automaticLossScalingSettings.gradientTensorTrackingMethod": (
        "GradientTensorTrackingMethod",
        3,
    ),
}

# Used on the Python side only.
_SKIPPED = _names("patterns_level anchored_tensors compilation_progress_bar_fn")


def _error(message: str) -> Error:
    return createError(message, layer="poptorch_cpp_error")


def _requireKnown(name: str, known: FrozenSet[str], kind: str) -> None:
    if name not in known:
        raise _error(f"Unknown {kind} option {name}")


def _requireText(value: Any) -> None:
    """Refuse what PopTorch turns into no text: python/poptorch.cpp:253-263."""
    if not isinstance(value, (str, int)):
        raise _error(f"Don't know how to convert type {type(value)} to string")


def _requireInRange(name: str, value: int) -> None:
    kind, count = _VALUES.get(name, ("", 0))
    if kind and not 0 <= int(value) < count:
        raise _error(
            f"Value for {kind} out of range: {name} is {int(value)}, expected 0 to {count - 1}"
        )


def _checkDict(name: str, value: Dict[Any, Any], options: Dict[str, Any]) -> None:
    if name == "available_memory_proportion":
        return
    if name == "patterns":
        if "patterns_level" not in options:
            raise _error(
                "PopART option 'patterns' should not be set without first setting 'patterns_level'."
            )
    elif name.startswith("location_"):
        if name not in _LOCATION:
            raise _error(f"Unknown tensor location {name}")
        for key in value:
            if key not in _LOCATION_KEYS:
                raise _error(f"Unknown option '{key}' for tensor location {name}")
    elif value:
        _requireKnown(name, _CONTAINER, "map")


def validate(options: Dict[str, Any]) -> None:
    """Refuse unknown options and types, and log the others.

    Raises:
        Error: an option's name is unknown for a value of its type.

    """
    # bool before int: a Python bool is an int too.
    scalar_kinds: Dict[type, Any] = {
        bool: (_BOOL, "bool"),
        int: (_INT, "uint64"),
        float: (_FLOAT, "floating point"),
        str: (_STRING, "string"),
    }
    log: Callable[..., None] = logger.debug
    for name, value in options.items():
        if name in _SKIPPED:
            continue
        kind = next((kind for cls, kind in scalar_kinds.items() if isinstance(value, cls)), None)
        if kind is not None:
            _requireKnown(name, *kind)
            if kind[1] == "uint64":
                _requireInRange(name, value)
            log("poptorch.Options set %s to value %s", name, _shown(value))
        elif isinstance(value, (set, list, tuple)):
            _requireKnown(name, _CONTAINER, "set / vector")
            for element in value:
                _requireText(element)
                log("poptorch.Options added %s to %s", element, name)
        elif isinstance(value, dict):
            _checkDict(name, value, options)
            for key, element in value.items():
                if name in _CONTAINER:
                    _requireText(element)
                log("poptorch.Options set %s[%s] to %s", name, key, element)
        else:
            raise _error(f"Unknown value type {type(value).__name__} for option {name}")


def _shown(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return int(value) if isinstance(value, int) else value
