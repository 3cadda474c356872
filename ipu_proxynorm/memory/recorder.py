"""Notes every aten operator of a meta trace, with the module and the stage that it belongs to."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory.graph import MATMULS, Capture, OperatorRecord, TensorRecord
from ipu_proxynorm.nested import stand_in, tensors_in
from ipu_proxynorm.stages import StageCount

# What an element takes on an IPU: no 64-bit types there.
_ELEMENT_BYTES = {torch.int64: 4, torch.float64: 4, torch.bool: 1}
# What an IPU has, or holds in 32 bits (PopTorch's dispatch_tracer/Tensor.cpp:43).
_TYPES = frozenset(
    (
        *(torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
    )
)
# Not work: new names for memory, or memory that is about to be written.
_SILENT = frozenset(("detach", "empty", "empty_like", "empty_strided", "new_empty", "lift_fresh"))
# Where aten's convolution says whether it is a transposed one; its gradient one further.
_TRANSPOSED = 6


class _Draft:
    """A tensor while the trace goes on."""

    def __init__(self, tensor: Tensor, name: str, layer: str, role: str, producer: int) -> None:
        self.name, self.layer, self.role, self.producer = name, layer, role, producer
        self.shape = tuple(tensor.shape)
        element = _ELEMENT_BYTES.get(tensor.dtype, tensor.element_size())
        # PopART's max-pooling keeps its input and output, no indices.
        is_index = name.startswith("max_pool") and not tensor.is_floating_point()
        self.bytes = 0 if is_index else tensor.numel() * element
        self.forward_uses: List[int] = []
        self.backward_uses: List[int] = []
        self.saved = 0  # by how many nodes of autograd
        #: Whether the device computes it: what depends on constants alone, the host does.
        self.held = role in ("parameter", "buffer", "input", "gradient")


class _FunctionMode(TorchFunctionMode):
    """After each torch function, notes which forward operator autograd's new nodes belong to."""

    def __init__(self, recorder: CaptureRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kind: Any = stand_in(types)
        if kind is not None:
            with self:
                return kind.__torch_function__(function, types, args, kwargs)
        result = function(*args, **(kwargs or {}))
        self._recorder.claim_nodes(result)
        return result


class _DispatchMode(TorchDispatchMode):
    def __init__(self, recorder: CaptureRecorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        self._recorder.note(function, args, kwargs or {}, result)
        return result


class CaptureRecorder:
    """Collects operators and tensors while its modes are active.

    Args:
        model: on the meta device.
        inputs: on the meta device.
        micro_batch: by which sizes are told to scale.
        place: from a block's name and IPU to the IPU that it is placed on.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Tensor],
        micro_batch: int,
        place: Callable[[Optional[str], Optional[int]], int],
    ) -> None:
        self._micro_batch = micro_batch
        self._place = place
        self._operators: List[Dict[str, Any]] = []
        self._drafts: List[_Draft] = []
        self._by_storage: Dict[int, int] = {}
        self._alive: List[Any] = []  # storages are told apart by address while they live
        self._layers: List[str] = [""]
        self._order: Dict[str, None] = {}
        self._stage = 0
        self._stages = StageCount()
        self._stage_names: Dict[int, str] = {}
        self._checkpoints: Set[int] = set()
        self._claimed: Set[Any] = set()
        # PopART differentiates these by their output (clip.cpp:108, leakyrelu.cpp:99), autograd by
        # their input: the output by the input.
        self._clipped: Dict[str, Dict[int, int]] = {"hardtanh": {}, "leaky_relu": {}}
        self._packed = -1  # what autograd kept last: an operator's inputs before it runs
        self._source = -1
        self._is_backward = False
        for name, parameter in model.named_parameters():
            _check_type(parameter, f"parameter {name}")
            self._adopt(parameter, name, name.rpartition(".")[0], "parameter")
        for name, buffer in model.named_buffers():
            _check_type(buffer, f"buffer {name}")
            self._adopt(buffer, name, name.rpartition(".")[0], "buffer")
        for number, given in enumerate(inputs):
            _check_type(given, f"input {number}")
            self._adopt(given, f"input {number}", "", "input")

    # ---- what the trace tells ---------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record what is called inside."""
        keep = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        with keep, _FunctionMode(self), _DispatchMode(self):
            yield

    def enter(self, layer: str) -> None:
        """Note that a module begins."""
        self._layers.append(layer)

    def leave(self) -> None:
        """Note that the module entered last ends."""
        self._layers.pop()

    def begin_block(self, user_id: Optional[str], ipu_id: Optional[int]) -> None:
        """Note that what follows belongs to another block."""
        self._stage = self._stages.begin(self._place(user_id, ipu_id))
        self._stage_names.setdefault(self._stage, str(user_id))

    def checkpoint(self, tree: Any) -> None:
        """Note that tensors are marked as recomputation checkpoints."""
        for tensor in tensors_in(tree):
            self._checkpoints.add(self._index_of(tensor, "constant"))

    def begin_backward(self, seeds: Sequence[Tensor]) -> None:
        """Note that the backward pass begins, from these gradients of the losses."""
        self._is_backward = True
        for seed in seeds:
            self._adopt(seed, "gradient of the loss", "", "gradient")

    def claim_nodes(self, result: Any) -> None:
        """Let autograd's nodes behind a result that no function before made belong to it."""
        source = len(self._operators) - 1
        waiting = [t.grad_fn for t in tensors_in(result) if t.grad_fn is not None]
        while waiting:
            node = waiting.pop()
            if node in self._claimed:
                continue
            self._claimed.add(node)
            node.register_prehook(self._entering_node(source))
            waiting += [n for n, _ in node.next_functions if n is not None]

    def _entering_node(self, source: int) -> Callable[[Any], None]:
        def enter(_: Any) -> None:
            self._source = source

        return enter

    def _pack(self, tensor: Tensor) -> Tensor:
        index = self._by_storage.get(_storage(tensor))
        if index is not None:
            self._drafts[index].saved += 1
            self._packed = index
        return tensor

    # ---- operators --------------------------------------------------------------------------

    def note(self, function: Any, args: Any, kwargs: Dict[str, Any], result: Any) -> None:
        """Note an operator, unless it only gives memory another name."""
        name = function._schema.name.split("::")[-1]
        inputs = tensors_in((args, kwargs))
        reads = _unique(self._index_of(t, "constant") for t in inputs)
        if name.endswith("_backward"):
            clipped = self._clipped.get(name[: -len("_backward")], {})
            reads = _unique(clipped.get(i, i) for i in reads)
        fresh = [t for t in tensors_in(result) if _storage(t) not in self._by_storage]
        written = function._schema.is_mutable
        counts = not fresh and all(self._drafts[i].role == "buffer" for i in reads)
        if (not fresh and not written) or name in _SILENT or counts:
            for tensor in fresh:
                self._adopt(tensor, name, self._layer(), "activation", len(self._operators))
            return
        index = len(self._operators)
        role = "gradient" if self._is_backward else "activation"
        held = any(self._drafts[i].held for i in reads)
        for tensor in fresh if held else ():
            _check_type(tensor, f"{self._layer() or 'the model'}: {name} makes a tensor that")
        made = _unique(self._adopt(t, name, self._layer(), role, index) for t in fresh)
        for changed in (*made, *(reads if written else ())) if held else ():
            self._drafts[changed].held = True
        if name in self._clipped and self._packed == reads[0]:
            self._clipped[name][reads[0]] = made[0]
            self._drafts[reads[0]].saved -= 1
            self._drafts[made[0]].saved += 1
        for read in reads:
            draft = self._drafts[read]
            (draft.backward_uses if self._is_backward else draft.forward_uses).append(index)
        source = self._source if self._is_backward else index
        self._operators.append(
            {
                "name": name,
                "layer": self._operators[source]["layer"] if self._is_backward else self._layer(),
                "stage": self._operators[source]["stage"] if self._is_backward else self._stage,
                "source": source,
                "inputs": reads,
                "outputs": made,
                "macs": multiply_adds(name, args, tensors_in(result)),
                "passes": _passes(name, args),
                "group_channels": _group_channels(name, args),
                "signature": self._signature(name, args),
            }
        )
        self._order.setdefault(self._layer(), None)

    def _layer(self) -> str:
        return self._layers[-1]

    def _signature(self, name: str, args: Any) -> Tuple[object, ...]:
        """Return name, shapes (the micro-batch left out) and numbers: what makes code distinct."""
        parts: List[object] = [name]
        for argument in args:
            if isinstance(argument, Tensor):
                shape = tuple(-1 if d % self._micro_batch == 0 else d for d in argument.shape)
                parts.append((str(argument.dtype), shape))
            elif isinstance(argument, (list, tuple)) and not tensors_in(argument):
                parts.append(tuple(argument))
            elif isinstance(argument, (bool, int)) or argument is None:
                parts.append(argument)
        return tuple(parts)

    # ---- tensors ----------------------------------------------------------------------------

    def _adopt(self, tensor: Tensor, name: str, layer: str, role: str, producer: int = -1) -> int:
        key = _storage(tensor)
        known = self._by_storage.get(key)
        if known is not None:
            return known
        index = len(self._drafts)
        self._drafts.append(_Draft(tensor, name, layer, role, producer))
        self._by_storage[key] = index
        self._alive.append(tensor.untyped_storage())
        return index

    def _index_of(self, tensor: Tensor, role: str) -> int:
        return self._adopt(tensor, role, self._layer(), role)

    def result(
        self, outputs: Sequence[Tensor], gradients: Dict[str, Tensor], training: bool
    ) -> Capture:
        """Return what was recorded, after the backward pass."""
        for name, gradient in gradients.items():
            draft = self._drafts[self._index_of(gradient, "gradient")]
            draft.role, draft.name = "weight_gradient", name
        forward = sum(1 for i, o in enumerate(self._operators) if o["source"] == i)
        return Capture(
            operators=tuple(
                OperatorRecord(index=i, backward=i >= forward, **o)
                for i, o in enumerate(self._operators)
            ),
            tensors=tuple(self._record(i, d) for i, d in enumerate(self._drafts)),
            micro_batch=self._micro_batch,
            layers=tuple(self._order),
            stage_names=tuple(self._stage_names[s] for s in range(1, len(self._stages.ipus))),
            stage_ipus=tuple(self._stages.ipus),
            checkpoints=tuple(sorted(self._checkpoints)),
            outputs=_unique(self._index_of(t, "constant") for t in outputs),
            training=training,
        )

    def _record(self, index: int, draft: _Draft) -> TensorRecord:
        numel = math.prod(draft.shape)
        own = draft.role in ("parameter", "buffer", "weight_gradient")
        return TensorRecord(
            index=index,
            name=draft.name,
            layer=draft.layer,
            shape=draft.shape,
            bytes=draft.bytes,
            scales=not own and numel > 0 and numel % self._micro_batch == 0,
            role=draft.role,
            producer=draft.producer,
            last_use=max([-1, *draft.forward_uses, *draft.backward_uses]),
            last_forward_use=max(draft.forward_uses, default=-1),
            first_backward_use=min(draft.backward_uses, default=-1),
            saved=draft.saved > 0,
        )


def _check_type(tensor: Tensor, what: str) -> None:
    """Refuse a tensor of a type that an IPU does not have.

    Raises:
        UserError: names it, its type and others.
    """
    if tensor.dtype not in _TYPES:
        instead = "use torch.float16 or torch.float32"
        if tensor.dtype.is_complex:
            instead = "give real and imaginary parts as tensors of their own"
        raise UserError(f"{what} is of {tensor.dtype}, which an IPU does not have: {instead}")


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _unique(indices: Any) -> Tuple[int, ...]:
    return tuple(dict.fromkeys(indices))


def multiply_adds(name: str, args: Any, results: Sequence[Tensor]) -> int:
    """Return an operator's multiply-adds; 0 where it is no convolution or matrix product.

    A convolution costs outputs × input channels of a group × kernel positions, a transposed one
    inputs × output channels of a group × kernel positions; its backward pass as much again for each
    of the gradients (input, weight) asked for.
    """
    if name == "convolution":
        most = args[0] if args[_TRANSPOSED] else results[0]
        return most.numel() * math.prod(args[1].shape[1:])
    if name == "convolution_backward":
        most = args[1] if args[_TRANSPOSED + 1] else args[0]
        return most.numel() * math.prod(args[2].shape[1:]) * _passes(name, args)
    if name in MATMULS:
        left = args[1] if name in ("addmm", "baddbmm") else args[0]
        return results[0].numel() * int(left.shape[-1])
    return 0


def _passes(name: str, args: Any) -> int:
    if name == "convolution_backward":
        return sum(bool(wanted) for wanted in args[-1][:2])
    return int(name == "convolution" or name in MATMULS)


def _group_channels(name: str, args: Any) -> int:
    """Return the input channels of each group of a convolution; 0 where it is none."""
    at = {"convolution": 1, "convolution_backward": 2}.get(name)
    if at is None:
        return 0
    weight, further = args[at], args[at + 1 :]  # bias (or its size), stride, padding, dilation ...
    if further[_TRANSPOSED - 2]:
        return int(weight.shape[0]) // int(further[_TRANSPOSED])
    return int(weight.shape[1])
