"""State that the whole package shares: whether a model is being traced for the device."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import fcntl
import functools
import hashlib
import itertools
import os
import weakref
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type

import torch

from . import poptorch_core
from ._logging import logger
from .alias import names

_is_ipu_context = False
_dispatch_tracing = False


def createPoptorchError(msg: str) -> poptorch_core.Error:
    """Return the ``poptorch.Error`` that PopTorch's Python layer would raise."""
    return poptorch_core.createError(msg)


def isRunningOnIpu() -> bool:
    """Tell whether the calling code runs as part of a wrapped model."""
    return _is_ipu_context


def setIpuContext(val: bool) -> None:
    """Enter or leave the part of the program that belongs to the device."""
    global _is_ipu_context
    _is_ipu_context = val


def isDispatchTracing() -> bool:
    """Tell whether tensors need ``device="ipu"``: never here, as torch has no such device."""
    return _dispatch_tracing


def setDispatchTracing(val: bool) -> None:
    """Set what `isDispatchTracing` answers."""
    global _dispatch_tracing
    _dispatch_tracing = val


# ---- tensors of the device -----------------------------------------------------------------------

# These modules may rebind their buffers in ``forward``.
BUFFERS_CAN_CHANGE = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)


def isOnIpu(x: Any) -> bool:
    """Tell whether a tensor is the device's, as it says while a model is traced."""
    return x.device.type == "ipu"


def getIpuTensorId(x: torch.Tensor) -> int:
    """Return the number of a tensor of the device, unique in the program that is being traced.

    Raises:
        poptorch.Error: it is none of the device's.

    """
    mark = x.__dict__.get("_simulated_slot")
    if mark is None:
        raise createPoptorchError("getIpuTensorId: expected an IPU tensor, got one of the host")
    return mark[2].number


def forEachParameterAndBuffer(model: torch.nn.Module, fn: Callable[[str, Any], None]) -> None:
    """Call ``fn`` with name and tensor of every buffer that must stay, then of every parameter."""
    for module_name, module in model.named_modules():
        if not isinstance(module, BUFFERS_CAN_CHANGE):
            for name, buffer in module.named_buffers(prefix=module_name, recurse=False):
                fn(name, buffer)
    for name, parameter in model.named_parameters():
        fn(name, parameter)


def getBufferAndParameterTensors(model: torch.nn.Module) -> Dict[str, torch.Tensor]:
    """Return the tensors that `forEachParameterAndBuffer` sees, by name."""
    tensors: Dict[str, torch.Tensor] = {}
    forEachParameterAndBuffer(model, tensors.__setitem__)
    return tensors


_Addresses = Dict[str, Tuple[torch.device, int]]


def getBufferAndParameterAddresses(model: torch.nn.Module) -> Tuple[_Addresses, _Addresses]:
    """Return device and address of every buffer that must stay, and of every parameter, by name."""
    parameters = dict(model.named_parameters())
    found: Tuple[_Addresses, _Addresses] = ({}, {})
    for name, tensor in getBufferAndParameterTensors(model).items():
        address = getIpuTensorId(tensor) if isOnIpu(tensor) else tensor.data_ptr()
        found[name in parameters][name] = (tensor.device, address)
    return found


def errorOnBufferOrParameterAddressChanges(
    old_addresses: Tuple[_Addresses, _Addresses], new_addresses: Tuple[_Addresses, _Addresses]
) -> None:
    """Refuse buffers and parameters that have gone or moved between two looks at a model.

    Raises:
        poptorch.Error: names the first, buffers before parameters.

    """
    for kind, old, new in zip(("Buffer", "Parameter"), old_addresses, new_addresses):
        for name, address in old.items():
            if name not in new:
                raise createPoptorchError(
                    f"{kind} {name} is removed from the model when calling the forward method."
                )
            if address != new[name]:
                raise createPoptorchError(
                    f"{kind} {name} is reassigned within the model when calling the forward "
                    f"method. This is not supported. Consider using self.{name}.copy_(src) to copy "
                    "data from a source tensor, where src is the name of the source tensor."
                )


# ---- operators -----------------------------------------------------------------------------------


class NameScopeHook:
    """Puts the operators of every module of a model in a name scope, until ``remove``."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.hooks: List[Any] = []
        for name, child in module.named_modules():
            if name:
                enter = functools.partial(self._enter_fn, name=name)
                self.hooks.append(child.register_forward_pre_hook(enter))
                self.hooks.append(child.register_forward_hook(self._exit_fn))

    def _enter_fn(self, module: torch.nn.Module, input: Any, name: str) -> None:
        torch.ops.poptorch.push_name_scope(name.split(".")[-1])

    def _exit_fn(self, module: torch.nn.Module, input: Any, output: Any) -> None:
        torch.ops.poptorch.pop_name_scope()

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self.hooks:
            hook.remove()


def internal_cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor as float32 or float16.

    Raises:
        ValueError: another type.

    """
    kinds = {torch.float32: "FLOAT", torch.float16: "FLOAT16"}
    if dtype not in kinds:
        raise ValueError("Invalid poptorch.cast target type. Expecting torch.float or torch.half")
    return torch.ops.poptorch.internal_cast(tensor, kinds[dtype])


def applyOptimizer(optimizer: torch.optim.Optimizer) -> None:
    """Tell the compiler which parameters are in which group; no value depends on it."""
    for index, group in enumerate(optimizer.param_groups):
        torch.ops.poptorch.optimizer_group(index, group["params"])


class OptimizerWrapper(torch.nn.Module):
    """A model that calls `applyOptimizer` at the end of ``forward``."""

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.model = model
        self.optimizer = optimizer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model."""
        out = self.model(*args, **kwargs)
        applyOptimizer(self.optimizer)
        return out


def destroyDispatcherOnExit(func: Callable) -> Callable:
    """Return the function: the simulator has no dispatcher that outlives a trace."""
    return func


def traceMethod(label: str) -> Callable[[Callable], Callable]:
    """Decorate a method to run within a trace point of its object's ``_profiling`` channel."""

    def decorator(func: Callable) -> Callable:
        @functools.wraps(func)
        def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self._profiling.tracepoint(label):
                return func(self, *args, **kwargs)

        return wrapper

    return decorator


@contextlib.contextmanager
def distributedCacheLock(model: torch.nn.Module, opts: Any) -> Iterator[bool]:
    """Let one process after the other compile, where several share an executable cache.

    Yields:
        whether this is the first of them; False where there is nothing to wait for.

    """
    cache = opts._popart.options.get("cachePath", "")
    processes = opts.Distributed.numProcesses
    if processes < 2 or not cache:
        if processes > 1:
            logger.warning(
                "Use poptorch.Options.enableExecutableCaching() to avoid compiling the model once "
                "per process"
            )
        yield False
        return
    os.makedirs(cache, exist_ok=True)
    name = hashlib.md5(repr(model).encode("utf-8")).hexdigest()
    filename = os.path.join(cache, f"{name}.lock")
    is_last = False
    try:
        with open(filename, "a+", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                file.write("0")  # a character for each process that has been here
                is_last = file.tell() == processes
                yield file.tell() == 1
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        if is_last:
            os.remove(filename)


# ---- marks on models, parameters and buffers -----------------------------------------------------


class WeakPtr(weakref.ref):
    """A weak reference that compares by identity."""

    __hash__ = weakref.ref.__hash__

    def __eq__(self, other: Any) -> bool:
        mine, theirs = self(), other()
        return self is other if mine is None else mine is theirs


class WeakKeyPtrDict:
    """A dictionary whose keys are held weakly and compared by identity."""

    def __init__(self, dict: Optional[Dict[Any, Any]] = None) -> None:
        self.data: Dict[WeakPtr, Any] = {}
        own = weakref.ref(self)

        def cleanup(key: Any) -> None:
            held = own()
            if held is not None:
                del held.data[key]

        self._cleanup = cleanup
        self.update(dict)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.data[WeakPtr(key, self._cleanup)] = value

    def __delitem__(self, key: Any) -> None:
        del self.data[WeakPtr(key)]

    def __getitem__(self, key: Any) -> Any:
        return self.data[WeakPtr(key)]

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value, or ``default``."""
        return self.data.get(WeakPtr(key), default)

    def __contains__(self, key: Any) -> bool:
        return WeakPtr(key) in self.data

    def update(self, dict: Optional[Dict[Any, Any]] = None) -> None:
        """Take over the entries of a dictionary."""
        for key, value in (dict or {}).items():
            self[key] = value


# What class to give an unmarked object back.
_wrapper_registry = WeakKeyPtrDict()
# The classes that marking classes derive from.
_wrapper_types: List[type] = []


def registerWrapperType(wrapper_type: Type) -> None:
    """Let `isWrapped` know a class that marks objects; they are copied and saved without it."""
    assert wrapper_type not in _wrapper_types
    _wrapper_types.append(wrapper_type)
    copyreg.pickle(wrapper_type, _pickleUnwrapObject)


def isWrapped(obj: Any) -> bool:
    """Tell whether a model, parameter or buffer carries the mark of ``trainingModel``."""
    return isinstance(obj, tuple(_wrapper_types))


def _plain_class(obj: Any) -> type:
    marks = tuple(_wrapper_types)
    return next(cls for cls in type(obj).__mro__ if not issubclass(cls, marks))


def unwrapIfWrapped(obj: Any) -> Any:
    """Take the mark off an object alone, in place, and return it."""
    if isWrapped(obj):
        obj.__class__ = _plain_class(obj)
    return obj


def _unwrapIfWrappedAndRegister(obj: Any) -> None:
    if isWrapped(obj):
        _wrapper_registry[obj] = type(obj)
        unwrapIfWrapped(obj)


def _restoreWrapperIfNecessary(obj: Any) -> Any:
    wrapper_type = _wrapper_registry.get(obj)
    if wrapper_type is not None:
        obj.__class__ = wrapper_type
    return obj


def _pickleUnwrapObject(obj: Any) -> Tuple[Callable[[Any], Any], Tuple[Any, ...]]:
    wrapper_type = type(obj)
    if wrapper_type not in _wrapper_types:
        raise createPoptorchError("Internal Error")
    obj.__class__ = wrapper_type.__bases__[0]
    other = copy.copy(obj)
    _wrapper_registry[other] = wrapper_type
    obj.__class__ = wrapper_type
    return _restoreWrapperIfNecessary, (other,)


def _each_marked(model: torch.nn.Module) -> Iterator[Any]:
    # Listed first: looking for them is a look at the model, which fetches its weights.
    yield from [*itertools.chain(model.buffers(), model.parameters()), model]


def unwrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Take the marks off a model, its parameters and buffers, in place."""
    for obj in _each_marked(model):
        _unwrapIfWrappedAndRegister(obj)


def rewrapModelIfNecessary(model: torch.nn.Module) -> None:
    """Put back the marks that `unwrapModelIfNecessary` has taken off."""
    for obj in _each_marked(model):
        _restoreWrapperIfNecessary(obj)


__getattr__ = names.getter(__name__)
