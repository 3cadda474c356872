"""Where the blocks of a model begin, and the IPU on which PopTorch puts each.

PopTorch has no public way to ask for either. What is read here is read as PopTorch 3.4's
``python/`` has it, named with its place, and its lack is an error: no default stands in for it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from torch import nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.memory.options import as_in_poptorch
from ipu_proxynorm.memory.recorder import CaptureRecorder

#: Name and IPU of a block, as the model gives them.
Block = Tuple[Optional[str], Optional[int]]


@functools.lru_cache(maxsize=None)
def _hook_class() -> type:
    """Return the class of the hooks that ``poptorch.BeginBlock`` registers."""
    (hook,) = poptorch.BeginBlock(nn.Identity())._forward_pre_hooks.values()
    return type(hook)


def blocks_of(module: nn.Module) -> List[Block]:
    """Return name and IPU of the blocks that ``poptorch.BeginBlock`` lets begin at a module.

    Raises:
        UserError: PopTorch is not as it was.
    """
    hooks: List[Any] = [h for h in module._forward_pre_hooks.values() if type(h) is _hook_class()]
    with as_in_poptorch("the names of blocks"):
        return [(hook._user_id, hook._ipu_id) for hook in hooks]  # ops.py:662


@contextlib.contextmanager
def blocks_begun(recorder: CaptureRecorder) -> Iterator[None]:
    """Tell the recorder where ``with poptorch.Block`` and checkpoints stand in ``forward``."""
    block = poptorch.Block
    enter, start = block.__enter__, block.start
    checkpoint = poptorch.recomputationCheckpoint

    def entered(self: Any) -> None:
        # Not PopTorch's own, which calls `start`: outside of a compilation neither does anything.
        with as_in_poptorch("the names of blocks"):
            user_id, ipu_id = self._user_id, self._ipu_id  # ops.py:619
        recorder.begin_block(user_id, ipu_id)

    def started(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        recorder.begin_block(user_id, ipu_id)

    def checkpointed(*tensors: Any) -> Any:
        recorder.checkpoint(tensors)
        return checkpoint(*tensors)

    setattr(block, "__enter__", entered)  # noqa: B010 (mypy takes methods for constants)
    setattr(block, "start", staticmethod(started))  # noqa: B010
    poptorch.recomputationCheckpoint = checkpointed
    try:
        yield
    finally:
        setattr(block, "__enter__", enter)  # noqa: B010
        setattr(block, "start", staticmethod(start))  # noqa: B010
        poptorch.recomputationCheckpoint = checkpoint


def placement(options: Optional[Any]) -> Callable[[Optional[str], Optional[int]], int]:
    """Return the function from a block's name and IPU to the IPU that it is placed on.

    Args:
        options: ``poptorch.Options``; None: each block that names no IPU is on one of its own,
            in order.

    Raises:
        UserError: PopTorch is not as it was.
    """
    if options is None:
        return _in_order()
    with as_in_poptorch("the stages of blocks"):
        # options.py:1169 and 736. A copy: the trace that PopTorch makes later numbers from 0.
        manager = copy.deepcopy(options._execution_strategy)._stages_manager

    def place(user_id: Optional[str], ipu_id: Optional[int]) -> int:
        # What IStageManager.beginStage does (_options_impl.py:238) but for the operator at its end,
        # which exists while PopTorch compiles only.
        with as_in_poptorch("the stages of blocks"):
            name = user_id or manager.nextAutoId()
            manager._current_ipu = ipu_id
            stage = manager.getStage(name)  # its attributes: options.py:688
            ipu = ipu_id if stage._ipu is None else stage._ipu
            return int(stage._stage_id if ipu is None else ipu)

    return place


def _in_order() -> Callable[[Optional[str], Optional[int]], int]:
    numbers: Dict[str, int] = {}

    def place(user_id: Optional[str], ipu_id: Optional[int]) -> int:
        number = numbers.setdefault(str(user_id), len(numbers) + 1)
        return number if ipu_id is None else ipu_id

    return place
