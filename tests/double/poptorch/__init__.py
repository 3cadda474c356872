"""A double of PopTorch 3.4: the real one's names and no more; the simulator computes underneath.

What differs from the simulator, as the real one has it: ``beginStage`` returns nothing
(python/_options_impl.py:238), blocks begin through ``Block.start`` (python/ops.py:624), hooks run
once the model has moved to the device and the dispatcher is on (python/_poplar_executor.py:736,
796), and on meta neither a loss nor a checkpoint has a derivative (RegisterMetaOps.cpp.inc:511).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import guard

from ipu_proxynorm import simulator
from ipu_proxynorm.simulator.executor import hooks, wrapping
from ipu_proxynorm.simulator.operations import blocks, marks
from ipu_proxynorm.simulator.settings.execution_strategy import IStageManager

# A machine with IPUs: their number must be a power of 2.
os.environ.setdefault("POPTORCH_SIM_HARDWARE", "1")


# ---- stages ------------------------------------------------------------------------------------

_begin_stage = IStageManager.beginStage


def _silent(self: Any, user_id: Any, ipu_id_from_block: Any) -> Any:
    placement = _begin_stage(self, user_id, ipu_id_from_block)
    return None if guard.is_product(sys._getframe(1)) else placement


IStageManager.beginStage = _silent  # type: ignore[method-assign]
blocks.Block.__enter__ = (  # type: ignore[method-assign]
    lambda self: blocks.Block.start(self._user_id, self._ipu_id)
)


# ---- operators on meta -------------------------------------------------------------------------


class _NoDerivative(torch.autograd.Function):
    """What torch's ``autogradNotImplementedFallback`` does."""

    @staticmethod
    def forward(ctx: Any, result: Any) -> Any:
        return result.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError("derivative for poptorch's operator on meta is not implemented")


def _identity_loss(x: torch.Tensor, reduction: int) -> torch.Tensor:
    if x.device.type == "meta":
        return _NoDerivative.apply(x if reduction == 2 else x.sum())
    return marks.identity_loss(x, ("sum", "mean", "none")[reduction])


def _recomputation_checkpoint(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "meta":
        return _NoDerivative.apply(tensor)
    return marks.recomputationCheckpoint(tensor)


torch.ops.poptorch.identity_loss = _identity_loss
torch.ops.poptorch.recomputation_checkpoint = _recomputation_checkpoint


def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
    """Call the operator by its number of the reduction (python/ops.py:1041)."""
    assert reduction in ("sum", "mean", "none"), "Unsupported reduction type!"
    return torch.ops.poptorch.identity_loss(x, ("sum", "mean", "none").index(reduction))


def recomputationCheckpoint(*tensors: Any) -> Any:
    """Call the operator for each tensor (python/ops.py:379)."""
    if len(tensors) == 1 and isinstance(tensors[0], (list, tuple)):
        return type(tensors[0])(recomputationCheckpoint(tensor) for tensor in tensors[0])
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise ValueError("All inputs must be tensors")
    kept = tuple(torch.ops.poptorch.recomputation_checkpoint(tensor) for tensor in tensors)
    return kept[0] if len(kept) == 1 else kept


# ---- hooks -------------------------------------------------------------------------------------


class _Dispatching(TorchFunctionMode):
    """The dispatcher is on: whatever torch function is called writes into the program."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", func)
        raise RuntimeError(
            f"{name} in a hook: the model is on ipu:0 and the dispatcher on, so that this becomes "
            "a part of the program"
        )


def _before_compiling() -> None:
    with _Dispatching():
        for hook in list(hooks._before.values()):
            hook()


hooks.before_compiling = _before_compiling

_after_compiling = hooks.after_compiling


def _profiled() -> None:
    """Leave a profile where the engine's options ask for one."""
    _after_compiling()
    engine = json.loads(os.environ.get("POPLAR_ENGINE_OPTIONS", "{}"))
    if engine.get("autoReport.all") == "true":
        folder = Path(engine["autoReport.directory"], "training")
        folder.mkdir(parents=True)
        (folder / "profile.pop").write_bytes(b"")


hooks.after_compiling = _profiled


# ---- wrapped models ----------------------------------------------------------------------------

_look_up = wrapping._WrappedModel.__getattribute__


def _looked_up(self: Any, name: str) -> Any:
    if name == "_executor" and guard.is_product(sys._getframe(1)):
        raise guard.NotInPopTorch("a model that PopTorch 3.4 has wrapped has no '_executor'")
    return _look_up(self, name)


wrapping._WrappedModel.__getattribute__ = _looked_up  # type: ignore[method-assign]


# ---- the module --------------------------------------------------------------------------------

guard.close_all()
_OWN = {"identity_loss": identity_loss, "recomputationCheckpoint": recomputationCheckpoint}
_module = guard.Closed("poptorch")
_module.__path__ = __path__
_module.__spec__ = __spec__
_module.__version__ = "3.4.0"
for _name, _value in _OWN.items():
    setattr(_module, _name, _value)
    setattr(simulator, _name, _value)
    setattr(simulator.ops, _name, _value)
sys.modules["poptorch"] = _module
for _name in guard.SURFACE:
    if _name != "poptorch":
        importlib.import_module(guard.module_of(_name))
        sys.modules[_name] = guard.Closed(_name)
