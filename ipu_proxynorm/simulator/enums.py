"""PopTorch's enumerations, with PopTorch's names and values."""

from __future__ import annotations

import enum


class MeanReductionStrategy(enum.IntEnum):
    """When a mean over micro-batches and replicas divides.

    ``Running`` keeps the accumulator at the mean of what it has seen, so that it never outgrows the
    largest gradient; ``Post`` sums first and divides once, which can overflow in float16;
    ``PostAndLoss`` (deprecated) divides by the replicas before the backward pass.
    """

    Running = 0
    Post = 1
    PostAndLoss = 2


class DataLoaderMode(enum.IntEnum):
    """Who prepares batches: this process, a worker process, or a worker that also re-batches."""

    Sync = 0
    Async = 1
    AsyncRebatched = 2


class SharingStrategy(enum.IntEnum):
    """How the worker process of an asynchronous accessor is started and handed its data set."""

    SharedMemory = 0
    FileSystem = 1
    Fork = 2
    ForkServer = 3


class OutputMode(enum.IntEnum):
    """Which micro-batches' outputs return to the host.

    ``Default`` is ``All`` for inference and ``Final`` for training.
    """

    Final = 0
    EveryN = 1
    All = 2
    Sum = 3
    Default = 4


class ConnectionType(enum.IntEnum):
    """When to attach to a device: from the start, at the first run, or never (compile only)."""

    Always = 0
    OnDemand = 1
    Never = 2


class HalfFloatCastingBehavior(enum.IntEnum):
    """Deprecated: mixed operands always upcast to float32."""

    FloatDowncastToHalf = 0
    HalfUpcastToFloat = 1
    Default = 2


class ReductionType(enum.IntEnum):
    """Sum, mean or neither."""

    Sum = 0
    Mean = 1
    NoReduction = 2


class SyncPattern(enum.IntEnum):
    """Which IPUs wait for each other when they exchange data with the host."""

    Full = 0
    SinglePipeline = 1
    ReplicaAndLadder = 2


class MatMulSerializationMode(enum.Enum):
    """The dimension along which a serialized matrix multiplication is cut."""

    InputChannels = "input_channels"
    ReducingDim = "reducing_dim"
    OutputChannels = "output_channels"
    Disabled = "none"


class Liveness(enum.IntEnum):
    """Under phased execution, when tensors leave the chip for Streaming Memory."""

    AlwaysLive = 0
    OffChipAfterFwd = 1
    OffChipAfterFwdNoOverlap = 2
    OffChipAfterEachPhase = 3


class OverlapMode(enum.Enum):
    """How far ahead the host loads an input (or stores an output) through IO tiles."""

    NoOverlap = "no_overlap"
    OverlapAccumulationLoop = "overlap_accumulation_loop"
    OverlapDeviceIterationLoop = "overlap_device_iteration_loop"


class AutoStage(enum.IntEnum):
    """How a block gets its stage when the execution strategy names none.

    ``SameAsIpu``: the stage is the block's IPU. ``AutoIncrement``: every new block opens a stage,
    so that returning to an earlier IPU does not return to its stage.
    """

    SameAsIpu = 0
    AutoIncrement = 1


class MultiConvPlanType(enum.IntEnum):
    """Whether the convolutions of a ``MultiConv`` run side by side or one after the other."""

    Parallel = 0
    Serial = 1


class CommGroupType(enum.IntEnum):
    """How replicas form groups that share a value.

    For N replicas in groups of k: ``All`` is one group, ``NoGrouping`` is N groups, ``Consecutive``
    puts replica r in group r // k, ``Orthogonal`` in group r % (N / k).
    """

    All = 0
    Consecutive = 1
    Orthogonal = 2
    NoGrouping = 3


class VariableRetrievalMode(enum.IntEnum):
    """Which replicas' values of a grouped variable are read back."""

    OnePerGroup = 0
    AllReplicas = 2
