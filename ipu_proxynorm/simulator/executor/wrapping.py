"""Marks a trained model so that any look at its weights fetches them from the device first."""

from __future__ import annotations

import copy
import weakref
from typing import Any, Dict, Optional, Protocol, Tuple, Type

import torch

from .. import _impl


class Executor(Protocol):
    """What a marked model asks of the executor that trains it."""

    @property
    def _host_weights_version(self) -> int:
        """How often the host's weights have been renewed."""

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Fetch the weights if they have been trained since; tell whether they had."""

    def destroy(self) -> None:
        """Give up program and device."""


class _Wrapped:
    """Base of all marking classes; each executor derives its own, which hold a weak link to it."""

    _executor: Any = staticmethod(lambda: None)


_impl.registerWrapperType(_Wrapped)


def is_wrapped(value: Any) -> bool:
    """Tell whether ``trainingModel`` has marked this model, parameter or buffer."""
    return isinstance(value, _Wrapped)


def _refresh(marked: Type[_Wrapped]) -> bool:
    executor: Optional[Executor] = marked._executor()
    return executor.copyWeightsToHostIfNeeded() if executor is not None else False


class _WrappedTensor(_Wrapped):
    """A tensor of which every attribute, and every use in a torch function, refreshes the value."""

    # torch looks this attribute up before it uses the tensor in any function: that look-up is what
    # `__getattribute__` sees. Results are plain tensors.
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __getattribute__(self, name: str) -> Any:
        _refresh(type(self))
        return object.__getattribute__(self, name)


class _WrappedParameter(_WrappedTensor, torch.nn.Parameter):  # type: ignore[misc]
    def __deepcopy__(self, memo: Dict[int, Any]) -> torch.nn.Parameter:
        if id(self) not in memo:
            memo[id(self)] = torch.nn.Parameter(self.data.clone(), self.requires_grad)
        return memo[id(self)]


class _WrappedBuffer(_WrappedTensor, torch.Tensor):  # type: ignore[misc]
    def __deepcopy__(self, memo: Dict[int, Any]) -> torch.Tensor:
        if id(self) not in memo:
            memo[id(self)] = self.detach().clone()
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.detach().__reduce_ex__(protocol)


class _WrappedModel(_Wrapped):
    """A model whose parameters are the device's."""

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Fetch the weights if they have been trained since; tell whether they had."""
        return _refresh(type(self))

    def destroy(self) -> None:
        """Give up the device and make this an ordinary model again, with the trained weights."""
        executor = type(self)._executor()
        if executor is not None:
            executor.destroy()
        else:
            unwrap(self)

    def __getattribute__(self, name: str) -> Any:
        if name == "_host_weights_version":
            executor = type(self)._executor()
            return None if executor is None else executor._host_weights_version
        if name in ("_buffers", "_parameters", "forward"):
            _refresh(type(self))
        return object.__getattribute__(self, name)

    def __copy__(self) -> Any:
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Saved as an ordinary model, with the weights as they are now.
        _refresh(type(self))
        return copy.copy, (plain_copy(self),)


def plain_copy(model: Any) -> Any:
    """Return a shallow copy of a model, without the mark: looks at it fetch no weights."""
    plain_class: Any = type(model).__bases__[-1] if is_wrapped(model) else type(model)
    if not isinstance(model, torch.nn.Module):
        return model
    copied = object.__new__(plain_class)  # torch.fx's own would give it another class
    copied.__dict__.update(model.__dict__)
    return copied


def plain_view(model: Any) -> Any:
    """Return a model without the mark that shares all attributes, ``training`` among them."""
    view = plain_copy(model)
    if isinstance(model, torch.nn.Module):
        object.__setattr__(view, "__dict__", model.__dict__)
    return view


def wrap(model: torch.nn.Module, executor: Executor) -> None:
    """Mark a model, its parameters and its buffers, in place.

    Raises:
        poptorch.Error: a buffer is of a tensor class of its own.

    """
    link = {"_executor": staticmethod(weakref.ref(executor))}
    parameter_class: Any = type("PoptorchParameter", (_WrappedParameter,), link)
    buffer_class: Any = type("PoptorchBuffer", (_WrappedBuffer,), link)
    for parameter in model.parameters():
        parameter.__class__ = parameter_class
    for buffer in model.buffers():
        if type(buffer) is not torch.Tensor:
            raise _impl.createPoptorchError(
                f"All buffers must be an instance of torch.Tensor (Got {type(buffer)})"
            )
        buffer.__class__ = buffer_class
    bases: Tuple[type, ...] = (_WrappedModel, type(model))
    model.__class__ = type(f"Poptorch{type(model).__name__}", bases, link)


def unwrap(model: Any) -> None:
    """Take the marks off, in place.

    Raises:
        poptorch.Error: the model has none.

    """
    if not is_wrapped(model):
        raise _impl.createPoptorchError("model was never wrapped")
    model.__class__ = type(model).__bases__[-1]
    for parameter in model.parameters():
        if is_wrapped(parameter):
            parameter.__class__ = torch.nn.Parameter
    for buffer in model.buffers():
        if is_wrapped(buffer):
            buffer.__class__ = torch.Tensor
