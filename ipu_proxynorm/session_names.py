"""PopART's session options by name: what type PopTorch takes for each.

Source: PopTorch 3.4.0, ``popart_compiler/source/SessionOptions.cpp:84-421``. An option that is
given another type is unknown to it.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, Tuple


def words(text: str) -> FrozenSet[str]:
    """Return the names in a text."""
    return frozenset(text.split())


#: PopTorch's own, which its setters set; through ``_Popart.set`` they would clash with them.
POPTORCH_BOOL = words("""
    auto_round_num_ipus use_model serial_phases_execution separate_backward_phase broadcast_buffers
""")
POPTORCH_INT = words("""
    device_iterations num_distributed_processes distributed_process_id ipu_version ipu_id
    gradient_accumulation output_return_period replication_factor input_group_size input_cgt
    execution_mode tensors_liveness output_mode connection_type max_repeat_logs
    accumulation_and_replication_reduction_type sync_pattern random_seed
""")
POPTORCH_STRING = words("log_dir model_name")

BOOL = words("""
    enableExplicitIR enableInplaceAmbiguityChecking enableLoadAndOffloadRNGState
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
INT = words("""
    accumulateOuterFragmentSettings.schedule autodiffSettings.stitchStrategy
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
FLOAT = words("""
    outlineSequenceBreakCost outlineThreshold timeLimitScheduler
    automaticLossScalingSettings.thresholdUpperCountProportion
    automaticLossScalingSettings.binEdgeLocation
""")
STRING = words("""
    saveInitializersToFile logDir cachePath partialsTypeMatMuls customCodeletCompileFlags
    serializedPoprithmsShiftGraphsDir kahnTieBreaker
""")
LIST = words("""
    accumulateOuterFragmentSettings.excludedVirtualGraphs dotChecks hardwareInstrumentations
    customCodelets updatableNamedBuffers
""")
MAPPING = words("""
    engineOptions reportOptions convolutionOptions matmulOptions lstmOptions gclOptions
""")

#: PopART's enumerations, and how many values each has (``SessionOptions.cpp:287-292, 313-330``).
ENUMERATIONS: Dict[str, Tuple[str, int]] = {
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
