"""Sees the torch functions that a traced model calls: marks losses, adapts what torch refuses."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Sequence

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ipu_proxynorm.nested import stand_in, tensors_in

from . import handlers, refusals, registered
from .autocast import without_autocast
from .packages.torch_scatter import replacement as torch_scatter_replacement
from .recorder import Recorder
from .replacements import REPLACEMENTS

# The losses of torch that PopTorch takes as the model's loss without poptorch.identity_loss.
_LOSS_NAMES = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_embedding_loss",
    "cross_entropy",
    "cross_entropy_loss",
    "ctc_loss",
    "hinge_embedding_loss",
    "kl_div",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "nll_loss2d",
    "nll_loss_nd",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
)
LOSSES = frozenset(
    getattr(module, name)
    for module in (F, torch, torch._C._nn)
    for name in _LOSS_NAMES
    if hasattr(module, name)
)

# What a tensor of the device says of where it is.
_DEVICE_GETTERS = {
    torch.Tensor.device.__get__: torch.device("ipu:0"),  # type: ignore[attr-defined]
    torch.Tensor.is_cpu.__get__: False,  # type: ignore[attr-defined]
    torch.Tensor.is_ipu.__get__: True,  # type: ignore[attr-defined]
}

_HOST_READS = {
    torch.Tensor.numpy: ".numpy()",
    torch.Tensor.tolist: ".tolist()",
}


# Tensors that these make stay on the host, unless told otherwise.
_HOST_FACTORIES = frozenset({
    torch.as_tensor,
    torch.bartlett_window,
    torch.blackman_window,
    torch.eye,
    torch.from_numpy,
    torch.hamming_window,
    torch.hann_window,
    torch.kaiser_window,
    torch.tril_indices,
    torch.triu_indices,
})  # fmt: skip


def _is_device(value: Any) -> bool:
    if isinstance(value, str):
        return value.split(":")[0] in ("ipu", "cpu", "cuda")
    return isinstance(value, torch.device)


def _names_ipu(value: Any) -> bool:
    return _is_device(value) and str(value).startswith("ipu")


class FunctionMode(TorchFunctionMode):
    """Passes every torch function on, having looked at it."""

    def __init__(
        self, recorder: Recorder, note_loss: Callable[[torch.Tensor], None], training: bool
    ) -> None:
        super().__init__()
        self._training = training
        self._recorder = recorder
        self._note_loss = note_loss

    def __torch_function__(
        self,
        func: Callable,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._recorder.is_paused:
            return func(*args, **kwargs)
        kind: Any = stand_in(types)
        if kind is not None:
            with self:  # the tensors that it stands for are seen in what it calls
                return kind.__torch_function__(func, types, args, kwargs)
        with self._recorder.in_function(getattr(func, "__name__", "")):
            with without_autocast():  # the model may have turned it on
                result = self._call(func, args, kwargs)
            if self._training:
                self._recorder.nodes.note(result, self._recorder.where)
            return result

    def _call(self, func: Callable, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        registered_function = registered.function_of(func)
        if registered_function is not None:
            with self:  # what it calls is seen as the model's own calls are
                return registered_function(*args, **kwargs)
        if func in _DEVICE_GETTERS and self._recorder.slot_of(args[0]) is not None:
            return _DEVICE_GETTERS[func]
        if self._is_on_host(args, kwargs):
            with self._recorder.paused():
                return func(*args, **kwargs)
        if func in _HOST_READS:
            raise refusals.host_read(_HOST_READS[func], self._recorder.where())
        handlers.check_function(func, args, kwargs, self._recorder)
        if func in LOSSES:
            if func.__name__ == "ctc_loss":
                args, kwargs = self._with_lengths(args, kwargs)
            loss = func(*args, **kwargs)  # what it calls inside is part of it
            self._note_loss(loss)
            return loss
        if func in _HOST_FACTORIES and not _names_ipu(kwargs.get("device")):
            with self._recorder.paused():
                return func(*args, **kwargs)
        if func is torch.Tensor.__repr__ and self._recorder.slot_of(args[0]) is not None:
            shape, dtype = tuple(args[0].shape), args[0].dtype
            return f"tensor(<unavailable>, device='ipu:0', size={shape}, dtype={dtype})"
        if self._is_made_on_host(args, kwargs):
            with self._recorder.paused():
                return func(*args, **kwargs)
        args, kwargs = self._moved(func, args, kwargs)
        function = REPLACEMENTS.get(func) or torch_scatter_replacement(func) or func
        return function(*args, **kwargs)

    def _with_lengths(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        """Return arguments with a tensor for each list of numbers.

        torch makes ctc_loss's lengths a tensor where no dispatcher sees the values.
        """

        def constant(value: Any) -> Any:
            if not isinstance(value, (list, tuple)):
                return value
            return self._recorder.constant(torch.tensor(value))

        return [constant(value) for value in args], {k: constant(v) for k, v in kwargs.items()}

    def _is_on_host(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> bool:
        """Tell whether a function of tensors is given the host's alone, and moves none.

        What is neither parameter nor buffer nor input stays a tensor of the host, with values;
        PopTorch passes such calls on to torch (``RegisterAtenOverloads.cpp``, ``cpuFallback``).
        """
        tensors = tensors_in((list(args), kwargs))
        if not tensors or any(self._recorder.slot_of(tensor) is not None for tensor in tensors):
            return False
        return not any(map(_names_ipu, (*args[1:], *kwargs.values())))

    def _is_made_on_host(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> bool:
        """Tell whether a factory is asked for a tensor of the host: it gets the real device."""
        device = kwargs.get("device")
        if not _is_device(device) or _names_ipu(device):
            return False
        tensors = tensors_in((list(args), kwargs))
        return all(self._recorder.slot_of(tensor) is None for tensor in tensors)

    def _moved(self, func: Callable, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        """Take ``device="ipu"`` out of the arguments; a tensor it is to move becomes a constant."""
        if func in (torch.Tensor.type_as, torch.Tensor.to) and any(
            self._recorder.slot_of(tensor) is not None
            for tensor in tensors_in((list(args[1:]), kwargs))
        ):
            return (self._recorder.constant(args[0]), *args[1:]), kwargs
        devices = [value for value in (*args[1:], *kwargs.values()) if _is_device(value)]
        if func in (torch.Tensor.cpu, torch.Tensor.cuda) or (
            func is torch.Tensor.to and not all(map(_names_ipu, devices))
        ):
            if self._recorder.slot_of(args[0]) is not None:
                raise refusals.move_to_cpu(self._recorder.where())
            return args, kwargs
        if not any(map(_names_ipu, devices)):
            return args, kwargs
        if func is torch.Tensor.to:
            args = (self._recorder.constant(args[0]), *args[1:])
        cpu = torch.device("cpu")
        args = [cpu if _names_ipu(value) else value for value in args]
        return args, {key: cpu if _names_ipu(v) else v for key, v in kwargs.items()}
