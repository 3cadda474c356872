"""A pending output that layers which know nothing of it read as the tensor that it stands for.

In networks that are not ours, what reads a unit is torch's own code. Functions of torch take any
object that brings ``__torch_function__``: a convolution or a product then takes the scale into its
weights, an average hands it on, a gate takes it into its factors, and every other function is given
the finished tensor. So the result is right whatever reads it; whether it is cheaper, the graph says
beforehand (`ipu_proxynorm.norm.convert.readers`).
"""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Sequence, Tuple

from torch import Tensor

from ipu_proxynorm.norm.pending import Pending, finished, per_channel, taken_over

Arguments = Dict[str, Any]
# Given a function, what is pending and further arguments; None: it takes a finished tensor only.
Handler = Callable[[Callable[..., Any], Pending, Sequence[Any], Arguments], Any]

_FACTS = frozenset(
    (
        *("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_sparse"),
        *("is_quantized", "is_meta", "dim", "size", "numel", "nelement", "element_size"),
        *("is_floating_point", "is_complex", "get_device", "ndimension"),
    )
)


class StandIn:
    """Stands for a tensor (N, C, *) whose last steps are pending."""

    def __init__(self, pending: Pending) -> None:
        self.pending = pending
        self._finished: Optional[Tensor] = None

    def finished(self) -> Tensor:
        """Return the tensor itself, computed once."""
        if self._finished is None:
            self._finished = finished(self.pending)
        return self._finished

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Arguments] = None
    ) -> Any:
        """Compute a function of torch, of what is pending where that gives the same."""
        kwargs = dict(kwargs or {})
        name = getattr(function, "__name__", "").strip("_")
        handler = _HANDLERS.get(name)
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        if handler is not None and args:
            if name in _PRODUCTS and not isinstance(args[0], StandIn):
                args = (args[1], args[0], *args[2:])
            given, rest = args[0], _all_finished(args[1:])
            if isinstance(given, StandIn) and given._finished is None:
                result = handler(function, given.pending, rest, _all_finished(kwargs))
                if result is not None:
                    return StandIn(result) if isinstance(result, Pending) else result
        return function(*_all_finished(args), **_all_finished(kwargs))

    def __getattr__(self, name: str) -> Any:
        """Return what a tensor has under a name."""
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _FACTS:
            return getattr(self.pending.value, name)
        if name in _HANDLERS:
            return lambda *args, **kwargs: self._call(name, *args, **kwargs)
        return getattr(self.finished(), name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.__torch_function__(getattr(Tensor, name), (), (self, *args), kwargs)

    def __len__(self) -> int:
        """Return N."""
        return len(self.pending.value)


def _operator(name: str) -> Callable[..., Any]:
    return lambda self, *args: self._call(name, *args)


for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv", "mod"),
    *("pow", "rpow", "matmul", "rmatmul", "neg", "pos", "abs", "getitem", "iter"),
    *("lt", "le", "gt", "ge", "eq", "ne", "bool", "float", "int", "and", "or", "invert"),
):
    setattr(StandIn, f"__{_name}__", _operator(f"__{_name}__"))
StandIn.__hash__ = object.__hash__  # type: ignore[method-assign]


def _all_finished(tree: Any) -> Any:
    if isinstance(tree, StandIn):
        return tree.finished()
    if isinstance(tree, dict):
        return {key: _all_finished(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_all_finished(value) for value in tree)
    return tree


def _argument(args: Sequence[Any], kwargs: Arguments, place: int, name: str, default: Any) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _convolution(
    function: Callable[..., Any], x: Pending, args: Sequence[Any], kwargs: Arguments
) -> Any:
    """(input,) weight, bias, stride, padding, dilation, groups."""
    padding = _argument(args, kwargs, 3, "padding", 0)
    none = padding == "valid" if isinstance(padding, str) else not any(_several(padding))
    if not _is_batch_of(function, x) or (x.shift is not None and not none):
        return None
    return _weighted(function, x, args, kwargs, _argument(args, kwargs, 5, "groups", 1))


def _is_batch_of(function: Callable[..., Any], x: Pending) -> bool:
    """Tell whether ``conv2d`` or the like takes x for a batch; with a dimension less, for one."""
    return x.value.dim() == 2 + int(function.__name__.rstrip("d")[-1])


def _several(sizes: Any) -> Sequence[Any]:
    return sizes if isinstance(sizes, (list, tuple)) else (sizes,)


def _product(
    function: Callable[..., Any], x: Pending, args: Sequence[Any], kwargs: Arguments
) -> Any:
    """(input,) weight, bias: the channels are the last dimension of (N, C) alone."""
    return _weighted(function, x, args, kwargs, 1) if x.value.dim() == 2 else None


def _weighted(
    function: Callable[..., Any],
    x: Pending,
    args: Sequence[Any],
    kwargs: Arguments,
    groups: int,
) -> Any:
    weight = _argument(args, kwargs, 0, "weight", None)
    bias = _argument(args, kwargs, 1, "bias", None)
    for taken in ("weight", "bias"):
        kwargs.pop(taken, None)
    return function(x.value, *taken_over(x, weight, bias, groups), *args[2:], **kwargs)


def _average(
    function: Callable[..., Any], x: Pending, args: Sequence[Any], kwargs: Arguments
) -> Any:
    """An average of values that are all there, or of zeros, too, which see a shift."""
    adaptive = function.__name__.startswith("adaptive")
    if not _is_batch_of(function, x) or (x.shift is not None and not adaptive):
        return None
    pooled = function(x.value, *args, **kwargs)
    out = x._replace(value=pooled)
    few = pooled.numel() == pooled.shape[0] * pooled.shape[1]
    return finished(out) if few else out


def _mean(function: Callable[..., Any], x: Pending, args: Sequence[Any], kwargs: Arguments) -> Any:
    """(input,) dim, keepdim: over space."""
    given, sizes = _argument(args, kwargs, 0, "dim", None), x.value.dim()
    if given is None or set(kwargs) - {"dim", "keepdim"}:
        return None
    dims = {d % sizes for d in ((given,) if isinstance(given, int) else given)}
    if not dims or dims & {0, 1}:
        return None
    return finished(x._replace(value=function(x.value, *args, **kwargs)))


def _dropout(
    function: Callable[..., Any], x: Pending, args: Sequence[Any], kwargs: Arguments
) -> Any:
    if x.shift is not None:
        return None
    return x._replace(value=function(x.value, *args, **kwargs))


def _pad(function: Callable[..., Any], x: Pending, args: Sequence[Any], kwargs: Arguments) -> Any:
    """(input,) pad, mode, value: of space."""
    filled = _argument(args, kwargs, 1, "mode", "constant") == "constant"
    value = _argument(args, kwargs, 2, "value", None)
    beyond = len(_argument(args, kwargs, 0, "pad", ())) > 2 * (x.value.dim() - 2)
    if x.shift is not None or (filled and value) or beyond:
        return None
    return x._replace(value=function(x.value, *args, **kwargs))


def _reshaped(
    function: Callable[..., Any], x: Pending, args: Sequence[Any], kwargs: Arguments
) -> Any:
    """A view in which N and C stay what they are, and so each channel's elements its own."""
    value = function(x.value, *args, **kwargs)
    same = value.shape[:2] == x.value.shape[:2] and value.dtype == x.value.dtype
    return x._replace(value=value) if same else None


def _gated(function: Callable[..., Any], x: Pending, args: Sequence[Any], kwargs: Arguments) -> Any:
    """A factor (N, C, 1, …) for each image and channel takes the scale."""
    gate = args[0] if args else None
    if x.shift is not None or x.scale is None or kwargs or not isinstance(gate, Tensor):
        return None
    if gate.dim() != x.value.dim() or gate.dtype != x.value.dtype:
        return None
    if gate.shape[1] != x.value.shape[1] or gate.numel() != gate.shape[0] * gate.shape[1]:
        return None
    return x.value * (gate * per_channel(x.scale, gate).to(gate.dtype))


_PRODUCTS: Tuple[str, ...] = ("mul", "rmul", "multiply")
_HANDLERS: Dict[str, Handler] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    "linear": _product,
    **dict.fromkeys((f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in "123"), _average),
    "mean": _mean,
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d"), _dropout),
    "pad": _pad,
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze"), _reshaped),
    **dict.fromkeys(_PRODUCTS, _gated),
}
