"""Numbers as the device has them: 32 bits at most, and float16 computed through float32."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple

import torch

from ipu_proxynorm.nested import map_tensors, tensors_in

from ..._logging import logger
from ..effects import operator_name, without_write, written
from ..handlers.facts import ProgramFacts, RecordedProgram
from . import half_norms, quotients, strided_norms, variances

aten = torch.ops.aten
_INPLACE_VIEW = getattr(torch, "Tag").inplace_view  # noqa: B009 (2.0 has no type of it)

DEMOTED = {
    torch.int64: torch.int32,
    torch.float64: torch.float32,
    torch.bfloat16: torch.float32,
}

# torch's CPU kernels want 64-bit integers in arguments of these names.
_WIDE_ARGUMENTS = frozenset({
    "bag_size", "index", "indices", "maximum_indices", "offset2bag", "offsets", "target",
})  # fmt: skip

# Where float16 meets float32, the tensor at this position decides the result's type, not promotion:
# so torch 2.0.1 infers on meta tensors, by which PopTorch types a program
# (dispatch_tracer/TypeInferenceHandler.cpp:34). ``addmm``, and with it ``linear`` with a bias of 2
# or 3 dimensions, promotes: float32.
_DECIDING = {
    "_cdist_forward": 0,
    "addmv": 2,
    "baddbmm": 2,
    "bmm": 1,
    "dot": 0,
    "index_add": 0,
    "index_copy": 0,
    "index_put": 0,
    "linalg_cross": 0,
    "mm": 0,
    "select_scatter": 0,
    "slice_scatter": 0,
    "vdot": 0,
    "convolution": 0,
    "_convolution": 0,
    "convolution_overrideable": 0,
    "convolution_backward": 0,
    "native_batch_norm": 0,
    "_native_batch_norm_legit": 0,
    "_native_batch_norm_legit_no_training": 0,
    "native_batch_norm_backward": 0,
    "native_group_norm": 0,
    "native_group_norm_backward": 0,
    "native_layer_norm": 0,
    "native_layer_norm_backward": 0,
}

# Moving data does not change it, and torch moves float16 as it is.
_MOVES = frozenset({
    "_to_copy", "cat", "clone", "copy", "copy_", "empty", "empty_like", "empty_strided", "fill_",
    "index_select", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones",
    "ones_like", "zero_", "zeros", "zeros_like",
})  # fmt: skip


def demoted(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in the device's data type: int64 as int32, float64 as float32."""
    dtype = DEMOTED.get(tensor.dtype)
    return tensor if dtype is None else tensor.to(dtype)


def round_stochastically(tensor: torch.Tensor) -> torch.Tensor:
    """Round float32 to float16, up or down with the probability that makes the mean exact.

    The part of the significand that float16 does not have gets uniform random bits added before it
    is cut off, so that the chance of rounding away from zero equals the fraction cut off.
    """
    # Below 2^-14 float16's spacing stops shrinking: float32's exponent then says how many more of
    # the low bits are lost than the usual 13.
    exponent = (tensor.view(torch.int32) >> 23) & 0xFF
    lost = (13 + (113 - exponent).clamp(min=0)).clamp(max=31)
    tiny = lost > 23  # less than the smallest float16: handled by its ratio to it
    mask = (torch.ones_like(exponent) << lost.clamp(max=23)) - 1
    noise = torch.randint(0, 1 << 23, tensor.shape, dtype=torch.int32, device=tensor.device) & mask
    rounded = ((tensor.view(torch.int32) + noise) & ~mask).view(torch.float32)
    smallest = 2.0**-24
    chance = torch.rand(tensor.shape, device=tensor.device) < tensor.abs() / smallest
    rounded = torch.where(tiny, chance.to(torch.float32) * smallest * tensor.sign(), rounded)
    return torch.where(torch.isfinite(tensor), rounded, tensor).to(torch.float16)


round_stochastically.is_random = True  # type: ignore[attr-defined]
round_stochastically.runs_anywhere = True  # type: ignore[attr-defined]


class Emitter(RecordedProgram, Protocol):
    """Takes operations into the program."""

    def emit(self, function: Callable, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        """Run an operation and note it."""


class _StandIns:
    """Copies in another data type that an operator gets in the place of its arguments."""

    def __init__(self) -> None:
        self._pairs: List[Tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, original: torch.Tensor, copied: torch.Tensor) -> torch.Tensor:
        """Let a copy stand for ``original``, and return it."""
        if copied is not original:
            self._pairs.append((original, copied))
        return copied

    def of(self, original: torch.Tensor) -> Optional[torch.Tensor]:
        """Return what stands for a tensor; None if nothing does."""
        return next((copied for known, copied in self._pairs if known is original), None)

    def original(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what a tensor stands for: itself, if it is no stand-in."""
        return next((known for known, copied in self._pairs if copied is tensor), tensor)


class DtypeRules:
    """Turns an operation into the ones that give the device's numbers, and emits these."""

    def __init__(
        self,
        recorder: Emitter,
        stochastic_rounding: bool,
        strided_groups: bool = False,
        stable_norms: bool = False,
    ) -> None:
        self._recorder = recorder
        self._stochastic_rounding = stochastic_rounding
        self._strided_groups = strided_groups
        self._stable_norms = stable_norms
        # int32 tensors that were int64 a moment ago, so that widening them again costs nothing.
        self._wide: Dict[int, Any] = {}

    def __call__(self, function: Any, args: List[Any], kwargs: Dict[str, Any]) -> Any:
        """Emit ``function`` with the device's data types and return its result."""
        if _INPLACE_VIEW in getattr(function, "tags", ()):  # changes the shape, not the numbers
            return self._recorder.emit(function, args, kwargs)
        args = [DEMOTED.get(arg, arg) if isinstance(arg, torch.dtype) else arg for arg in args]
        if isinstance(kwargs.get("dtype"), torch.dtype):
            kwargs = dict(kwargs, dtype=DEMOTED.get(kwargs["dtype"], kwargs["dtype"]))
        if any(argument.name == "out_int32" for argument in function._schema.arguments):
            kwargs = dict(kwargs, out_int32=True)
        if function is aten.erfc.default:  # as PopTorch has it: AtenHandlers.gen.cpp:177
            return self(aten.rsub.Scalar, [self(aten.erf.default, args, kwargs), 1], {})
        facts = ProgramFacts(self._recorder)
        if quotients.is_floored(function, args, kwargs, facts):
            kwargs = dict(kwargs, rounding_mode="trunc")
        if quotients.is_exact(function, args, facts):
            logger.warning(
                "%s divides integers: an IPU cuts the fraction off, and so does the simulator. "
                "Write a.float() / b.",
                self._recorder.where().location,
            )
            return quotients.cut_off(self._recorder.emit, function, args)
        if variances.concerns(function) and args[0].is_floating_point():
            return variances.taken_apart(self, function, args, kwargs)
        if self._strided_groups and strided_norms.concerns(function, args):
            return strided_norms.regrouped(self._recorder.emit, self._ruled, function, args)
        return self._ruled(function, args, kwargs)

    def _ruled(self, function: Any, args: List[Any], given: Optional[Dict[str, Any]] = None) -> Any:
        kwargs = given or {}
        targets = written(function, args, kwargs)
        wide = _StandIns()
        args, kwargs = self._widen_indices(function, args, kwargs, wide)
        if self._is_half(function, args, kwargs):
            result = self._half(function, args, kwargs, targets)
        else:
            result = self._recorder.emit(function, args, kwargs)
        return self._narrow(self._write_back(wide, targets, result))

    def _write_back(self, stand_ins: _StandIns, targets: List[torch.Tensor], result: Any) -> Any:
        """Write to the targets what an operator has written to their stand-ins.

        Returns:
            the operator's result, with a target where it returns the stand-in.

        """
        for target in targets:
            stand_in = stand_ins.of(target)
            if stand_in is not None:
                self._write(target, stand_in)
        return map_tensors(stand_ins.original, result)

    # ---- integers ---------------------------------------------------------------------------

    def _cast(self, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return self._recorder.emit(aten._to_copy.default, [tensor], {"dtype": dtype})

    def _widened(self, value: Any, stand_ins: _StandIns) -> Any:
        if isinstance(value, (list, tuple)):
            return [self._widened(element, stand_ins) for element in value]
        if not isinstance(value, torch.Tensor) or value.dtype != torch.int32:
            return value
        before = self._wide.get(id(value))
        if before is not None and before[0] is value and before[2] == value._version:
            return stand_ins.add(value, before[1])
        return stand_ins.add(value, self._cast(value, torch.int64))

    def _widen_indices(
        self, function: Any, args: List[Any], kwargs: Dict[str, Any], stand_ins: _StandIns
    ) -> Any:
        args, kwargs = list(args), dict(kwargs)
        for position, argument in enumerate(function._schema.arguments):
            if argument.name not in _WIDE_ARGUMENTS:
                continue
            if position < len(args):
                args[position] = self._widened(args[position], stand_ins)
            elif argument.name in kwargs:
                kwargs[argument.name] = self._widened(kwargs[argument.name], stand_ins)
        return args, kwargs

    def _narrow(self, result: Any) -> Any:
        if isinstance(result, (list, tuple)):
            return type(result)(self._narrow(element) for element in result)
        if not isinstance(result, torch.Tensor) or result.dtype not in DEMOTED:
            return result
        narrow = self._cast(result, DEMOTED[result.dtype])
        if result.dtype == torch.int64:
            self._wide[id(narrow)] = (narrow, result, narrow._version)
        return narrow

    # ---- float16 ----------------------------------------------------------------------------

    def _is_half(self, function: Any, args: List[Any], kwargs: Dict[str, Any]) -> bool:
        name = operator_name(function)
        if name in _MOVES and not (self._stochastic_rounding and name in ("_to_copy", "copy_")):
            return False
        schema = function._schema
        if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
            return False  # a view
        return kwargs.get("dtype") == torch.float16 or any(
            tensor.dtype == torch.float16 for tensor in tensors_in((args, kwargs))
        )

    def _half(
        self,
        function: Any,
        args: List[Any],
        kwargs: Dict[str, Any],
        targets: List[torch.Tensor],
    ) -> Any:
        name = operator_name(function)
        if name in half_norms.NORMS and args[0].dtype == torch.float16:
            stable = self._stable_norms
            return half_norms.normalized(self._recorder, self._rounded, name, args, stable)
        dtype = self._result_dtype(name, args, kwargs)
        raised_dtype = {torch.float16: torch.float32}
        args = [raised_dtype.get(a, a) if isinstance(a, torch.dtype) else a for a in args]
        if isinstance(kwargs.get("dtype"), torch.dtype):
            kwargs = dict(kwargs, dtype=raised_dtype.get(kwargs["dtype"], kwargs["dtype"]))
        target = self._only_target(function, args, kwargs, targets)
        functional = without_write(function) if target is not None else None
        if functional is not None:
            kwargs = {key: value for key, value in kwargs.items() if value is not target}
            if name == "copy_":
                return self._write(target, args[1])
            args, kwargs = self._raised((args, kwargs), _StandIns())
            return self._write(target, self._recorder.emit(functional, args, kwargs))
        stand_ins = _StandIns()
        args, kwargs = self._raised((args, kwargs), stand_ins)
        result = self._recorder.emit(function, args, kwargs)
        result = self._write_back(stand_ins, targets, result)

        def rounded(tensor: torch.Tensor) -> torch.Tensor:
            is_target = any(tensor is target for target in targets)
            return tensor if is_target else self._rounded(tensor, dtype)

        return map_tensors(rounded, result)

    def _write(self, target: Any, result: Any) -> torch.Tensor:
        if target.dtype == torch.float16:
            result = self._rounded(result, torch.float16)
        self._recorder.emit(aten.copy_.default, [target, result], {})
        self._wide.pop(id(target), None)
        return target

    def _raised(self, tree: Any, stand_ins: _StandIns) -> Any:
        """Return the arguments with float32 copies in the place of float16 tensors."""

        def raised(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.dtype != torch.float16:
                return tensor
            known = stand_ins.of(tensor)
            return (
                stand_ins.add(tensor, self._cast(tensor, torch.float32)) if known is None else known
            )

        return map_tensors(raised, tree)

    def _rounded(self, result: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if result.dtype != torch.float32 or dtype != torch.float16:
            return result
        if self._stochastic_rounding:
            return self._recorder.emit(round_stochastically, [result], {})
        return self._cast(result, torch.float16)

    @staticmethod
    def _only_target(
        function: Any, args: List[Any], kwargs: Dict[str, Any], targets: List[torch.Tensor]
    ) -> Optional[torch.Tensor]:
        """Return the tensor that an operator is there to write to, if it writes to no other."""
        if len(targets) != 1:
            return None
        for position, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[position] if position < len(args) else kwargs.get(argument.name)
                is_returned = any(
                    returned.alias_info is not None for returned in function._schema.returns
                )
                return value if value is targets[0] and is_returned else None
        return None

    @staticmethod
    def _result_dtype(name: str, args: Sequence[Any], kwargs: Dict[str, Any]) -> torch.dtype:
        asked = [value for value in (*args, kwargs.get("dtype")) if isinstance(value, torch.dtype)]
        if asked:
            return asked[0]
        position = _DECIDING.get(name)
        if position is not None:
            return args[position].dtype
        floats = [t for t in tensors_in((args, kwargs)) if t.is_floating_point()]
        deciding = [t for t in floats if t.dim() > 0] or floats
        if any(t.dtype == torch.float32 for t in deciding):
            return torch.float32
        return torch.float16
