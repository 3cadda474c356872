"""Blocks: parts of a model that are placed on an IPU of their own."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any, Callable, Optional, TypeVar, Union

import torch

from .. import _impl
from ..trace import tracing

_ModuleT = TypeVar("_ModuleT", bound=torch.nn.Module)


def _begin(user_id: Optional[str], ipu_id: Optional[int]) -> None:
    """Place what follows; without effect unless a model is being traced."""
    trace = tracing.current()
    if trace is not None:
        trace.begin_block(str(user_id), trace.stages_manager.beginStage(user_id, ipu_id))


class Block(torch.nn.Module):
    """A context manager: what is called inside runs as one block.

    Args:
        user_id: name of the block; blocks of the same name are one block.
        ipu_id: the IPU to run on, counted within the model.

    """

    def __init__(self, user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        super().__init__()
        self._user_id = user_id
        self._ipu_id = ipu_id

    @staticmethod
    def useAutoId() -> None:
        """Count blocks without a name from "0" again; call it first thing in ``forward``."""
        trace = tracing.current()
        if trace is not None:
            trace.stages_manager.resetAutoId()

    @staticmethod
    def start(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> None:
        """Begin a block that goes on until another begins."""
        _begin(user_id, ipu_id)

    def __enter__(self) -> None:
        _begin(self._user_id, self._ipu_id)

    def __exit__(self, *_: Any) -> None:
        trace = tracing.current()
        if trace is not None:
            trace.end_block()


class LegacyBeginBlockFn(torch.nn.Module):
    """A function that begins a block each time it is called."""

    def __init__(
        self,
        layer_to_call: Callable,
        user_id: Optional[str] = None,
        ipu_id: Optional[int] = None,
    ) -> None:
        super().__init__()
        self._layer_to_call = layer_to_call
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Begin the block, then run the layer."""
        hook = _BlockHook(self._user_id, self._ipu_id)
        hook(self, args)
        self._user_id = hook._user_id
        return self._layer_to_call(*args, **kwargs)


class _BlockHook:
    """Begins a block just before a module runs."""

    def __init__(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        self._user_id = user_id
        self._ipu_id = ipu_id

    def __call__(self, module: torch.nn.Module, args: Any) -> None:
        trace = tracing.current()
        if trace is not None and self._user_id is None:
            self._user_id = trace.stages_manager.nextAutoId()
        _begin(self._user_id, self._ipu_id)

    def __repr__(self) -> str:
        return f"BeginBlock(user_id={self._user_id}, ipu_id={self._ipu_id})"


def BeginBlock(
    layer_to_call: Union[_ModuleT, Callable],
    user_id: Optional[str] = None,
    ipu_id: Optional[int] = None,
) -> Any:
    """Let a block begin where a module is called; it goes on until another begins.

    The module is changed in place, by a forward hook, and returned.

    Raises:
        poptorch.Error: the module begins a block already, or is no module.

    """
    if not isinstance(layer_to_call, torch.nn.Module):
        if callable(layer_to_call):
            return LegacyBeginBlockFn(layer_to_call, user_id, ipu_id)
        raise _impl.createPoptorchError("module is not an instance of torch.nn.Module or function.")
    hooks = layer_to_call._forward_pre_hooks.values()
    if any(isinstance(hook, _BlockHook) for hook in hooks):
        raise _impl.createPoptorchError("module has already been assigned to a block.")
    layer_to_call.register_forward_pre_hook(_BlockHook(user_id, ipu_id))
    return layer_to_call


def removeBlocks(module: torch.nn.Module) -> None:
    """Undo `BeginBlock` on a module and all modules in it."""
    assert isinstance(module, torch.nn.Module)
    for part in module.modules():
        part._forward_pre_hooks = OrderedDict(
            (key, hook)
            for key, hook in part._forward_pre_hooks.items()
            if not isinstance(hook, _BlockHook)
        )


def BlockFunction(user_id: Optional[str] = None, ipu_id: Optional[int] = None) -> Callable:
    """Decorate a function to run as one block."""

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def in_block(*args: Any, **kwargs: Any) -> Any:
            with Block(user_id, ipu_id):
                return function(*args, **kwargs)

        return in_block

    return decorate
