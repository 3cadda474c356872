"""What programs for PopTorch take from ``import popart``: enumerations, as numbers of its options.

PopART's own API (builder, sessions, devices) is not simulated, and says so. Members and values are
those of PopART 3.4.0 (``python/popart/popart_core/popart.cpp``).
"""

from __future__ import annotations

import enum
from typing import Any, Dict

from ..poptorch_core import Error as popart_exception

__version__ = "3.4.0-simulated"


class Enumeration(enum.Enum):
    """An enumeration whose members are made numbers by ``int()`` alone, as pybind11's are."""

    def __int__(self) -> int:
        return int(self.value)

    __index__ = __int__


# Members in the order of their values, from 0; several names of one value are joined with "=".
_MEMBERS = {
    "AccumulateOuterFragmentSchedule": (
        "Scheduler Serial OverlapCycleOptimized OverlapMemoryOptimized"
    ),
    "AdamMode": "Adam AdamNoBias AdaMax Lamb LambNoBias",
    "AdaptiveMode": "AdaGrad RMSProp CenteredRMSProp AdaDelta",
    "AnchorReturnTypeId": "Final EveryN All Sum",
    "AutodiffStitchStrategy": (
        "RecomputeMinimal RecomputeAllNonInputs AddFwdOutputs SafeAddFwdOutputs"
    ),
    "BatchSerializationBatchSchedule": "Scheduler Isomorphic OverlapOnIo OverlapOnCompute",
    "BatchSerializationMethod": "UnrollDynamic UnrollStatic Loop",
    "BatchSerializationTransformContext": "Forward=Fwd Backward=Bwd",
    "DeviceConnectionType": "Always OnDemand Never",
    "DeviceSelectionCriterion": "First Random",
    "DeviceType": "IpuModel Cpu Ipu OfflineIpu Sim",
    "ExchangeStrategy": "JustInTime OverlapInnerLoop OverlapLoops OverlapStep",
    "ExecutionPhaseIOSchedule": "Preload OnDemand",
    "ExecutionPhaseSchedule": "Interleaving Batch BatchClusteredIO",
    "GradientTensorTrackingMethod": (
        "AllNonViewChangingGradientTensors ConvAndMatmulGradients GradientsOfUserSpecifiedTensors"
    ),
    "InitType": "NoInit Zero",
    "Instrumentation": "Outer Inner",
    "IrSerializationFormat": "JSON",
    "MeanReductionStrategy": "Running Post",
    "MergeVarUpdateType": "Off All AutoLoose AutoTight",
    "PatternsLevel": "NoPatterns Minimal Default All",
    "RecomputationType": "NoRecompute Standard NormOnly Pipeline RecomputeAll",
    "RecomputeType": "Undefined Checkpoint Recompute Recomputed",
    "ReductionType": "Sum Mean NoReduction",
    "ReplicatedStreamMode": "Broadcast Replicate",
    "ReplicatedTensorSharding": "Off On",
    "SGDAccumulatorAndMomentum": "Combined Separate",
    "ScatterReduction": "Sum Max Min Mul NoReduction",
    "SubgraphCopyingStrategy": "OnEnterAndExit JustInTime",
    "SyncPattern": "Full SinglePipeline ReplicaAndLadder",
    "SyntheticDataMode": "Off Zeros RandomNormal RandomUniform",
    "TensorRemapType": "FwdBwdReverse FwdBwd Fwd",
    "TensorStorage": "OnChip OffChip",
    "TileSet": "Compute IO",
    "VariableRetrievalMode": "OnePerGroup AllReduceReplicas AllReplicas",
    "VirtualGraphMode": "Off Manual Auto ExecutionPhases",
    "WeightDecayMode": "Decay L2Regularization",
}

__all__ = ["popart_exception", *_MEMBERS]


def _made(name: str) -> Any:
    members: Dict[str, int] = {}
    for value, names in enumerate(_MEMBERS[name].split()):
        members.update(dict.fromkeys(names.split("="), value))
    make: Any = Enumeration
    return make(name, members, module=__name__)


globals().update({name: _made(name) for name in _MEMBERS})


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"popart.{name}: PopART's own API is not simulated, only the enumerations that PopTorch's "
        f"options take as numbers: {', '.join(sorted(_MEMBERS))}. Leave out what the program does "
        "with PopART itself, or run it with the SDK."
    )
