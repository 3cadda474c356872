"""Which stage, phase and IPU each block of a model runs on."""

from __future__ import annotations

import abc
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from .. import enums
from .._logging import logger
from .._options_impl import require

BlockId = str


class BlockPlacement(NamedTuple):
    """Where a block was put: pipeline stage (or -1), phase (or -1) and IPU."""

    stage: int
    phase: int
    ipu: int


class Stage:
    """Blocks that run together on one IPU."""

    def __init__(self, *block_ids: BlockId) -> None:
        require(
            all(isinstance(b, str) for b in block_ids),
            f"Block IDs are supposed to be strings but got {block_ids}",
        )
        self._blocks = block_ids
        self._stage_id = -1
        self._phase_id = -1
        self._ipu: Optional[int] = None

    @property
    def blocks(self) -> Tuple[BlockId, ...]:
        """The blocks' ids."""
        return self._blocks

    def ipu(self, ipu: int) -> Stage:
        """Run the stage on this IPU."""
        require(isinstance(ipu, int), f"ipu must be an integer but got {ipu!r}")
        self._ipu = ipu
        return self

    def _setStage(self, stage: Optional[int]) -> Stage:
        if stage is not None:
            self._stage_id = stage
        return self


class IStageManager(abc.ABC):
    """Answers, block by block while a model is traced, where the block goes."""

    def __init__(self) -> None:
        self._next_auto_id = 0
        self._current_ipu: Optional[int] = None
        self._debug_messages: List[Tuple[Any, ...]] = []

    def clearDebug(self) -> None:
        """Forget the messages of an earlier trace."""
        self._debug_messages = []

    def printDebug(self) -> None:
        """Log what was decided during the trace."""
        for message in self._debug_messages:
            logger.debug(*message)

    def nextAutoId(self) -> BlockId:
        """Return the id of the next block that was given none."""
        auto_id = str(self._next_auto_id)
        self._next_auto_id += 1
        return auto_id

    def resetAutoId(self) -> None:
        """Count blocks without an id from 0 again."""
        self._next_auto_id = 0

    @abc.abstractmethod
    def getStage(self, block_id: BlockId) -> Stage:
        """Return the stage that holds this block."""

    def beginStage(
        self, user_id: Optional[BlockId], ipu_id_from_block: Optional[int]
    ) -> BlockPlacement:
        """Place a block; an IPU set on its stage wins over the block's own ``ipu_id``."""
        user_id = user_id or self.nextAutoId()
        self._current_ipu = ipu_id_from_block
        stage = self.getStage(user_id)
        ipu = stage._ipu if stage._ipu is not None else ipu_id_from_block
        if ipu is None:
            self._debug_messages.append(
                ("No IPU specified for block %s: default to stage_id %d", user_id, stage._stage_id)
            )
            ipu = stage._stage_id
        placement = BlockPlacement(stage._stage_id, stage._phase_id, ipu)
        self._debug_messages.append(
            ("Starting block id=%s stage=%d phase=%d ipu=%d", user_id, *placement)
        )
        return placement


class _DefaultStageManager(IStageManager):
    """Makes a stage for every block met, numbered as ``AutoStage`` says."""

    def __init__(self, auto_stage: enums.AutoStage) -> None:
        super().__init__()
        self._next_id = 1
        self._block_map: Dict[BlockId, Stage] = {}
        self._auto_stage = auto_stage

    def getStage(self, block_id: BlockId) -> Stage:
        if block_id not in self._block_map:
            if self._auto_stage == enums.AutoStage.SameAsIpu:
                require(
                    self._current_ipu is not None,
                    "poptorch.AutoStage.SameAsIpu was selected but no "
                    f"IPU was specified for block {block_id}",
                )
                stage_id = self._current_ipu
            else:
                stage_id = self._next_id
                self._next_id += 1
            self._block_map[block_id] = Stage(block_id)._setStage(stage_id)
        return self._block_map[block_id]


class _ExplicitStageManager(IStageManager):
    """Knows every block beforehand."""

    def __init__(self, block_map: Dict[BlockId, Stage]) -> None:
        super().__init__()
        self._block_map = block_map

    def getStage(self, block_id: BlockId) -> Stage:
        require(
            block_id in self._block_map,
            f"Unknown Block '{block_id}' list of expected Blocks: {list(self._block_map)}",
        )
        return self._block_map[block_id]


def _addBlocks(block_map: Dict[BlockId, Stage], stage: Stage, where: str) -> None:
    for block in stage.blocks:
        require(block not in block_map, f"{block} associated with more than one stage")
        logger.debug("block %s added to %s", block, where)
        block_map[block] = stage


class _IExecutionStrategy:
    """The stages of a model and what the compiler is told about them."""

    def __init__(self, stages_manager: IStageManager, block_map: Dict[BlockId, Stage]) -> None:
        self._block_map = block_map
        self._stages_manager = stages_manager

    def stage(self, block_id: BlockId) -> Stage:
        """Return the stage that the strategy was given for this block."""
        require(block_id in self._block_map, f"Unknown block {block_id}")
        return self._block_map[block_id]

    @property
    def stages_manager(self) -> IStageManager:
        """What places the blocks that a trace meets."""
        return self._stages_manager

    def backendOptions(self) -> Dict[str, Any]:
        """Options that the strategy adds to the serialised ones."""
        return {}


_StageLike = Union[enums.AutoStage, Stage, BlockId, Sequence[BlockId]]


class PipelinedExecution(_IExecutionStrategy):
    """Stages work on different micro-batches at once: the default.

    Takes an ``AutoStage``, or the stages in order, each a ``Stage``, a block id, or a list of block
    ids.
    """

    def __init__(self, *args: _StageLike) -> None:
        automatic = [arg for arg in args if isinstance(arg, enums.AutoStage)]
        if len(args) == len(automatic) == 1 or not args:
            way = automatic[0] if automatic else enums.AutoStage.SameAsIpu
            super().__init__(_DefaultStageManager(way), {})
            return
        blocks: Dict[BlockId, Stage] = {}
        for number, arg in enumerate(args):
            _addBlocks(blocks, self._toStage(arg)._setStage(number), f"stage {number}")
        super().__init__(_ExplicitStageManager(blocks), blocks)

    @staticmethod
    def _toStage(arg: _StageLike) -> Stage:
        if isinstance(arg, Stage):
            return arg
        if isinstance(arg, str):
            return Stage(arg)
        require(
            not isinstance(arg, enums.AutoStage) and all(isinstance(block, str) for block in arg),
            f"A stage must be a poptorch.Stage, a block ID or a list of block IDs but got {arg!r}",
        )
        return Stage(*arg)  # type: ignore[misc]

    def backendOptions(self) -> Dict[str, Any]:
        """Return the compiler's options that ask for this strategy."""
        return {"execution_mode": 0}


class ShardedExecution(PipelinedExecution):
    """Stages run one after the other on each micro-batch, without overlap."""

    def backendOptions(self) -> Dict[str, Any]:
        """Return the compiler's options that ask for this strategy."""
        return {"execution_mode": 1}


class Phase:
    """Stages that run in parallel; block ids alone stand for one stage of these blocks."""

    def __init__(self, *arg: Union[BlockId, Stage]) -> None:
        stages = [elt for elt in arg if isinstance(elt, Stage)]
        if len(stages) == len(arg):
            self.stages = stages
            return
        require(
            not stages and all(isinstance(elt, str) for elt in arg),
            "All arguments must either be block IDs (strings) or Stages: "
            f"{[type(elt) for elt in arg]}",
        )
        self.stages = [Stage(*arg)]  # type: ignore[arg-type]

    def stage(self, idx: int) -> Stage:
        """Return the stage of that index."""
        return self.stages[idx]

    def ipus(self, *ipus: int) -> None:
        """Give each stage its IPU, one for each in order."""
        require(
            len(ipus) == len(self.stages),
            f"Phase contains {len(self.stages)} stages but you provided {len(ipus)} ipus",
        )
        for stage, ipu in zip(self.stages, ipus):
            stage.ipu(ipu)


class _IPhasedExecution(_IExecutionStrategy):
    """Blocks run phase by phase, weights and activations resting in Streaming Memory between.

    Takes the phases in order, each a ``Phase``, a list of ``Stage`` or a list of block ids.
    """

    def __init__(self, *phases: Union[Phase, Stage, BlockId, List[Stage], List[BlockId]]) -> None:
        require(
            phases,
            "There is currently no AutoStage for PhasedExecution, please explicitly specify the "
            "phases",
        )
        self._tensors_liveness = enums.Liveness.AlwaysLive
        self._separate_backward_phase = False
        self._phases: List[Phase] = []
        block_map: Dict[BlockId, Stage] = {}
        for phase_id, arg in enumerate(phases):
            phase = self._toPhase(arg)
            self._phases.append(phase)
            for stage in phase.stages:
                stage._phase_id = phase_id
                _addBlocks(block_map, stage, f"phase {phase_id}")
        super().__init__(_ExplicitStageManager(block_map), block_map)

    @staticmethod
    def _toPhase(arg: Union[Phase, Stage, BlockId, List[Stage], List[BlockId]]) -> Phase:
        if isinstance(arg, Phase):
            return arg
        return Phase(*arg) if isinstance(arg, list) else Phase(arg)

    def phase(self, phase: int) -> Phase:
        """Return the phase of that index."""
        require(isinstance(phase, int) and phase >= 0, "Phases are identified by positive integers")
        return self._phases[phase]

    def useSeparateBackwardPhase(self, use: bool = True) -> _IPhasedExecution:
        """Give the backward pass phases of its own, instead of sharing the last forward phase."""
        require(isinstance(use, bool), f"useSeparateBackwardPhase needs a bool but got {use!r}")
        self._separate_backward_phase = use
        return self

    def backendOptions(self) -> Dict[str, Any]:
        """Return the compiler's options that ask for this strategy."""
        return {
            "execution_mode": 2,
            "separate_backward_phase": self._separate_backward_phase,
            "tensors_liveness": self._tensors_liveness.value,
        }


class ParallelPhasedExecution(_IPhasedExecution):
    """Phases alternate between two groups of IPUs, one loading while the other computes."""

    def backendOptions(self) -> Dict[str, Any]:
        """Return the compiler's options that ask for this strategy."""
        return {**super().backendOptions(), "serial_phases_execution": False}

    def sendTensorsOffChipAfterFwd(self, off_chip: bool = True) -> ParallelPhasedExecution:
        """Whether activations leave the chip between the forward and the backward pass."""
        require(isinstance(off_chip, bool), f"off_chip must be a bool but got {off_chip!r}")
        self._tensors_liveness = (
            enums.Liveness.OffChipAfterFwd if off_chip else enums.Liveness.AlwaysLive
        )
        return self


class SerialPhasedExecution(_IPhasedExecution):
    """Phases run one after the other on one group of IPUs."""

    def setTensorsLiveness(self, liveness: enums.Liveness) -> SerialPhasedExecution:
        """When tensors leave the chip."""
        require(
            isinstance(liveness, enums.Liveness),
            f"liveness must be a poptorch.Liveness but got {liveness!r}",
        )
        self._tensors_liveness = liveness
        return self

    def backendOptions(self) -> Dict[str, Any]:
        """Return the compiler's options that ask for this strategy."""
        return {**super().backendOptions(), "serial_phases_execution": True}
