"""Records the torch operations that a model calls, as a program to be run again."""

from __future__ import annotations

import contextlib
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ipu_proxynorm.nested import map_tensors, tensors_in

from .._errors import Error
from .._logging import logger
from . import consistency, constructors, effects, handlers, refusals, registered
from .arithmetic import dtypes, selects
from .consistency import Traced
from .nodes import NodeOrigins
from .origins import Origin, find_origin
from .packages import torch_spline_conv
from .tape import Block, Operation, Slot, slots_in
from .views import Views
from .written import Written

_RANDOM_TAG = getattr(torch, "Tag").nondeterministic_seeded  # noqa: B009 (2.0 has no type of it)
_MARK = "_simulated_slot"
# What torch.tensor() and torch.as_tensor() end with.
_CONSTANTS = (torch.ops.aten.lift_fresh.default, torch.ops.aten.lift.default)


#: Called after each operation with the recorder, the operator, its arguments and its results; may
#: emit operations of its own.
Watch = Callable[["Recorder", Any, Any, List[torch.Tensor]], None]


class _Shadow(NamedTuple):
    """Running statistics that a batch norm updates: their slot, and that of a copy from before."""

    tensor: torch.Tensor  # held, so that no other tensor gets its id
    own: Slot
    before: Slot


#: Gradients whose kernels read at an index without a check that it is in range.
_UNCHECKED = ("aten::nll_loss_backward", "aten::nll_loss2d_backward")


@contextlib.contextmanager
def kernels_of_onednn(enabled: bool) -> Iterator[None]:
    """Let torch use oneDNN meanwhile, or not."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(enabled)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def _without_indices(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(tensor) if tensor.dtype == torch.int64 else tensor


class Recorder(TorchDispatchMode):
    """While active, runs each operation on real tensors and notes it in ``self.block``.

    Every tensor of the program carries its slot as a mark; a tensor without one was made outside
    and becomes a constant of the program.
    """

    def __init__(
        self,
        stochastic_rounding: bool = False,
        watches: Sequence[Watch] = (),
        training: bool = False,
        strided_groups: bool = False,
        stable_norms: bool = False,
    ) -> None:
        super().__init__()
        self._watches = watches
        self.block = Block()
        self.constants: Dict[Slot, torch.Tensor] = {}
        self.training = training
        # Neither the outputs' copies nor the backward pass belong to the user's lines and blocks.
        self.user_code = True
        self.nodes = NodeOrigins()
        # Stage, phase and IPU of the active block as the strategy places it; None after a block has
        # ended. The pipeline's stages are counted apart.
        self.placement: Optional[Tuple[int, int, int]] = (0, 0, 0)
        self.used_placements: Dict[Tuple[int, int, int], Origin] = {}
        self.stage = 0
        self.written = Written()
        #: What each slot stands for.
        self.traced: Dict[Slot, Traced] = {}
        #: The last error of ours: where TorchScript is between, its text is lost on the way.
        self.refusal: Optional[Error] = None
        # Kernels run as they will in the program: oneDNN's lay their results out in other ways.
        self._onednn = torch._C._get_mkldnn_enabled()
        self._dtypes = dtypes.DtypeRules(self, stochastic_rounding, strided_groups, stable_norms)
        self._views = Views()
        self._shadows: Dict[int, _Shadow] = {}
        self._updates_statistics = False
        self.is_paused = False
        self._is_trusted = False
        self._functions: List[str] = []
        self._slots = 0
        self._foreign: Dict[int, Tuple[torch.Tensor, torch.Tensor]] = {}

    def __deepcopy__(self, memo: Dict[int, Any]) -> Recorder:
        """Return itself, where a tensor is copied with the mark that it carries."""
        return self

    # ---- slots ------------------------------------------------------------------------------

    def new_slot(self, tensor: torch.Tensor) -> Slot:
        """Make ``tensor`` a tensor of the program."""
        slot = Slot(self._slots)
        self._slots += 1
        self._mark(tensor, slot)
        return slot

    def _mark(self, tensor: torch.Tensor, slot: Slot) -> None:
        # With the id: Python attributes are copied along with a tensor by copy.deepcopy.
        tensor.__dict__[_MARK] = (self, id(tensor), slot)
        self.traced[slot] = Traced.of(tensor)

    def slot_of(self, tensor: torch.Tensor) -> Optional[Slot]:
        """Return the tensor's slot, or None if the program does not know it."""
        mark = tensor.__dict__.get(_MARK)
        if mark is not None and mark[0] is self and mark[1] == id(tensor):
            return mark[2]
        return None

    def stands_for(self, tensor: torch.Tensor, slot: Slot) -> None:
        """Let ``tensor`` stand for a slot that there is."""
        self._mark(tensor, slot)

    def same_slot(self, tensor: torch.Tensor, original: torch.Tensor) -> None:
        """Let ``tensor``, an alias of ``original`` in every respect, share its slot."""
        slot = self.slot_of(original)
        assert slot is not None
        self._mark(tensor, slot)

    def constant(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the constant of the program that stands for a tensor made outside it."""
        if self.slot_of(tensor) is not None:
            return tensor
        entry = self._foreign.get(id(tensor))
        if entry is None:
            constant = dtypes.demoted(tensor.detach().clone())
            self.constants[self.new_slot(constant)] = constant.clone()  # the model may write to it
            entry = self._foreign[id(tensor)] = (tensor, constant)  # both kept alive for their ids
        return entry[1]

    # ---- operations -------------------------------------------------------------------------

    def emit(self, function: Callable, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        """Run an operation and note it.

        Args:
            function: a torch operator, or any function of tensors that returns tensors.
            args: its arguments, with tensors that the program knows.
            kwargs: likewise.

        """
        if self.placement is None and self.user_code:
            raise refusals.no_active_block(self.where())
        where = self.where()
        slots, reads = self._arguments(function, args, kwargs, where)
        writes = effects.written(function, args, kwargs)
        with self.paused(), kernels_of_onednn(self._onednn):
            result = self._run(function, args, kwargs)
        if function is torch.ops.aten.detach.default:
            self.same_slot(result, args[0])
            return result
        outputs = map_tensors(
            lambda tensor: None if self.slot_of(tensor) is not None else self.new_slot(tensor),
            result,
        )
        tags = getattr(function, "tags", ())
        operation = Operation(
            function,
            slots[0],
            slots[1],
            outputs,
            where,
            keeps=bool(writes) or getattr(function, "has_effect", False),
            random=_RANDOM_TAG in tags or getattr(function, "is_random", False),
            reads=reads,
            makes=self._made(outputs, writes),
        )
        for tensor in writes:
            self.written.add(tensor, operation, tracked=not self._updates_statistics)
        self.block.operations.append(operation)
        if self.placement is not None:
            self.used_placements.setdefault(self.placement, where)
        return result

    def _arguments(
        self, function: Callable, args: Sequence[Any], kwargs: Dict[str, Any], where: Origin
    ) -> Tuple[Any, Dict[Slot, Traced]]:
        """Return an operation's arguments with slots for the tensors, and what they stand for.

        Raises:
            poptorch.Error: by a fault of the simulator's a tensor is not what its slot stands for.

        """
        reads: Dict[Slot, Traced] = {}

        def known(tensor: torch.Tensor) -> Slot:
            slot, given = self.slot_of(tensor), Traced.of(tensor)
            name = effects.operator_name(function)
            if slot is None:
                raise consistency.fault(f"{name} of {where.location} is given an unknown {given}")
            consistency.check_argument(name, where.location, given, self.traced[slot])
            reads[slot] = given
            return slot

        return map_tensors(known, (list(args), kwargs)), reads

    def _made(self, outputs: Any, writes: Sequence[torch.Tensor]) -> Dict[Slot, Traced]:
        """Return what an operation has made, having noted what has become of what it writes to."""
        made = {slot: self.traced[slot] for slot in slots_in(outputs)}
        for tensor in writes:  # some change the shape
            slot = self.slot_of(tensor)
            if slot is not None:
                made[slot] = self.traced[slot] = Traced.of(tensor)
        return made

    @staticmethod
    def _run(function: Callable, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        """Run an operation, whose result must depend on the values of no index."""
        function = getattr(function, "record", function)
        schema = getattr(function, "_schema", None)
        if schema is not None and schema.name in _UNCHECKED:
            args, kwargs = map_tensors(_without_indices, (list(args), kwargs))
        try:
            return function(*args, **kwargs)
        except (IndexError, RuntimeError):
            # While a model is compiled its inputs' values do not count: if only an index is out of
            # range, this tells the shape of the result.
            valid = map_tensors(_without_indices, (list(args), kwargs))
            if not any(t.dtype == torch.int64 and t.numel() for t in tensors_in(valid)):
                raise
            try:
                return function(*valid[0], **valid[1])
            except (IndexError, RuntimeError):
                pass
            raise

    def where(self) -> Origin:
        """Return where in the user's program the present operation comes from."""
        if self.user_code:
            return find_origin(self._place())
        if self.nodes.at_work is not None:
            return self.nodes.at_work
        return Origin("", 0, *self._place(), backward=True)

    def _place(self) -> Tuple[int, int, int]:
        _, phase, ipu = self.placement or (0, 0, 0)
        return self.stage, phase, ipu

    @contextlib.contextmanager
    def _real_statistics(self, statistics: Sequence[torch.Tensor]) -> Iterator[None]:
        """Let a batch norm have its running statistics themselves meanwhile.

        The device writes them at the end of the micro-batch, torch at once. So what reads them
        later in the forward pass is given a copy, which is dead code where nothing does.
        """
        for tensor in statistics:
            shadow = self._shadows.get(id(tensor))
            if shadow is None:
                before = self.emit(torch.ops.aten.clone.default, [tensor], {})
                own, copied = self.slots_of([tensor, before])
                self._shadows[id(tensor)] = _Shadow(tensor, own, copied)
            else:
                self._mark(tensor, shadow.own)
        self._updates_statistics = bool(statistics)
        yield
        self._updates_statistics = False
        for tensor in statistics:
            self._mark(tensor, self._shadows[id(tensor)].before)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict] = None
    ) -> Any:
        try:
            return self._dispatched(func, args, kwargs or {})
        except Error as error:
            self.refusal = error
            raise

    def _dispatched(self, func: Any, args: Sequence[Any], kwargs: Dict[str, Any]) -> Any:
        poptorch_function = registered.function_of(func)
        if poptorch_function is not None:  # of no tensor: others end as operators of torch
            return poptorch_function(*args, **kwargs)
        if self.is_paused:
            return func(*args, **kwargs)
        with torch._C.DisableTorchFunction():
            if func in _CONSTANTS:
                # Constructors such as torch.LongTensor, which are no functions, stay on the host.
                return self.constant(args[0]) if self._functions else func(*args)
            tensors = tensors_in((args, kwargs))
            if tensors and all(self.slot_of(tensor) is None for tensor in tensors):
                return func(*args, **kwargs)  # on the host alone, once
            if func is torch.ops.aten.equal.default:
                # PopTorch's answer while it compiles, and torch's own layers ask the question.
                logger.warning("torch.equal answers False while a model is compiled")
                return False
            if func is torch.ops.aten._local_scalar_dense.default and not self.user_code:
                return func(*args, **kwargs)  # torch's own check of whether it can differentiate
            if func is torch.ops.aten.copy_.default:
                args = (args[0], self.constant(args[1]), *args[2:])
            spline = torch_spline_conv.function_of(func)
            if spline is not None:
                torch_spline_conv.check(func, args, self)
                return self.emit(spline, list(args), kwargs)
            args = self._own_number(func, args)
            is_constant = handlers.ProgramFacts(self).is_constant
            refusals.check(func, tensors_in((args, kwargs)), self, is_constant)
            handlers.check_operator(func, args, kwargs, self)
            self._views.check(func, args, kwargs, self.where())
            func = self._views.function(func, args)
            with self._real_statistics(effects.updated_statistics(func, args, kwargs)):
                result = selects.gradient(self.nodes.name, func, args, self._dtypes)
                if result is None:
                    result = self._dtypes(func, list(args), kwargs)
            self._views.note(func, result)
            if tensors:
                refusals.check_result(result, self)
            for watch in self._watches:
                watch(self, func, (args, kwargs), tensors_in(result))
            return result

    def _own_number(self, func: Any, args: Sequence[Any]) -> Sequence[Any]:
        """Return the arguments with a number that torch itself puts in by index as a constant.

        torch 2.0 does so within ``cross_entropy``'s label smoothing, and makes the number's tensor
        where no dispatcher sees it.
        """
        by_user = self.function in ("index_put", "index_put_", "__setitem__")
        if func is not torch.ops.aten.index_put_.default or by_user or args[2].dim() > 0:
            return args
        return (*args[:2], self.constant(args[2]), *args[3:])

    def release(self) -> None:
        """Forget what is only needed while recording: tensors, and autograd's graph."""
        self.nodes = NodeOrigins()
        self._foreign = {}
        self._shadows = {}
        self._views = Views()
        self.written = Written()
        self._dtypes = dtypes.DtypeRules(self, False)

    # ---- control flow -----------------------------------------------------------------------

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Note nothing meanwhile."""
        before, self.is_paused = self.is_paused, True
        try:
            yield
        finally:
            self.is_paused = before

    @contextlib.contextmanager
    def in_function(self, name: str) -> Iterator[None]:
        """Note that a torch function of this name is being called."""
        self._functions.append(name)
        try:
            yield
        finally:
            self._functions.pop()

    @contextlib.contextmanager
    def trusted(self) -> Iterator[None]:
        """Accept any operator meanwhile: what stands for an operation of PopTorch's own."""
        before, self._is_trusted = self._is_trusted, True
        try:
            yield
        finally:
            self._is_trusted = before

    @property
    def function(self) -> Optional[str]:
        """The torch function that the model has called, if it is in one."""
        return self._functions[0] if self._functions else None

    @property
    def checks_operators(self) -> bool:
        """Tell whether operators are the model's, rather than made of an accepted operation."""
        return self.user_code and not self._is_trusted

    def fresh(self, tensor: torch.Tensor, slot: Optional[Slot] = None) -> torch.Tensor:
        """Return a copy as a tensor of the program that no operation made.

        Args:
            tensor: gives the values while the program is recorded.
            slot: the slot it gets; a new one if None.

        """
        with self.paused():
            copied = tensor.detach().clone()
        if slot is None:
            self.new_slot(copied)
        else:
            self._mark(copied, slot)
        return copied

    def value_of(self, tensor: torch.Tensor) -> Any:
        """Return the number in a tensor, as it is while the program is recorded."""
        with self.paused():
            return tensor.item()

    def constant_tensors(self) -> List[torch.Tensor]:
        """Return the constants as the model sees them while it is recorded."""
        return [constant for _, constant in self._foreign.values()]

    def slots_of(self, tensors: Sequence[torch.Tensor]) -> List[Slot]:
        """Return the slots of tensors; those made outside become constants."""
        slots = [self.slot_of(self.constant(tensor)) for tensor in tensors]
        return [slot for slot in slots if slot is not None]

    @contextlib.contextmanager
    def nested(self) -> Iterator[Block]:
        """Note operations in a block of their own meanwhile."""
        outer, self.block = self.block, Block()
        try:
            yield self.block
        finally:
            self.block = outer


_active: List[Recorder] = []


def active() -> Optional[Recorder]:
    """Return the recorder of the model that is being traced, if any."""
    return _active[-1] if _active else None


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Record what is called meanwhile, whatever gradient mode the caller is in."""
    _active.append(recorder)
    try:
        with torch.inference_mode(False), torch.enable_grad(), constructors.on_the_host(), recorder:
            yield recorder
    finally:
        _active.pop()
