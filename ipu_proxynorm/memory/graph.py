"""What a capture is made of: operators and tensors of one micro-batch, as plain numbers."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Dict, FrozenSet, List, Optional, Sequence, Tuple, TypeVar

from ipu_proxynorm.errors import UserError, nearest

Record = TypeVar("Record")

#: What a tensor is to the program. ``weight_gradient`` is one micro-batch's, before accumulation.
ROLES = ("input", "parameter", "buffer", "constant", "activation", "gradient", "weight_gradient")


@dataclasses.dataclass(frozen=True)
class TensorRecord:
    """A tensor with memory of its own; views of it are the same tensor.

    Attributes:
        index: its place in `Capture.tensors`.
        name: the parameter's or buffer's name, else the operator that made it.
        layer: dotted name of the module that made it or owns it; empty for the outermost.
        shape: at the capture's micro-batch.
        bytes: at the capture's micro-batch and precision, as an IPU holds it (int64 as int32).
        scales: whether its size is proportional to the micro-batch.
        role: one of `ROLES`.
        producer: the operator that makes it; −1: it exists before the first operator.
        last_use: the last operator that reads it; −1: none does.
        last_forward_use: the last forward operator that reads it; −1: none does.
        first_backward_use: the first backward operator that reads it; −1: none does.
        saved: autograd keeps it from the forward to the backward pass.
    """

    index: int
    name: str
    layer: str
    shape: Tuple[int, ...]
    bytes: int
    scales: bool
    role: str
    producer: int
    last_use: int = -1
    last_forward_use: int = -1
    first_backward_use: int = -1
    saved: bool = False


@dataclasses.dataclass(frozen=True)
class OperatorRecord:
    """An operator of the program, in order of execution.

    Attributes:
        index: its place in `Capture.operators`.
        name: aten's, without namespace and overload, e.g. ``convolution``.
        layer: dotted name of the innermost module that called it, or whose gradient it is.
        stage: pipeline stage.
        backward: belongs to the backward pass.
        source: the forward operator whose gradient it belongs to; itself in the forward pass.
        inputs: tensors that it reads.
        outputs: tensors that it makes.
        macs: multiply-adds, of convolutions and matrix products; else 0.
        passes: products that it stands for: a convolution's gradient is one for each of input and
            weight; 0 where it is no convolution or matrix product.
        group_channels: the input channels of each group of a convolution; else 0.
        signature: what makes its code distinct: operators of one signature share code.
    """

    index: int
    name: str
    layer: str
    stage: int
    backward: bool
    source: int
    inputs: Tuple[int, ...]
    outputs: Tuple[int, ...]
    macs: int
    passes: int
    group_channels: int
    signature: Tuple[object, ...]

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution or its gradient."""
        return self.name.startswith("convolution")

    @property
    def is_matmul(self) -> bool:
        """Whether it is a matrix product."""
        return self.name in MATMULS

    @property
    def is_pointwise(self) -> bool:
        """Whether each result depends on the same place of its inputs: it can run in place."""
        return self.name in POINTWISE


MATMULS = ("mm", "addmm", "bmm", "baddbmm")


def _names(text: str) -> FrozenSet[str]:
    return frozenset(text.split())


POINTWISE = _names("""
    abs add clamp clamp_max clamp_min div elu elu_backward exp gelu gelu_backward hardswish
    hardswish_backward hardtanh hardtanh_backward leaky_relu leaky_relu_backward log maximum
    minimum mul native_dropout native_dropout_backward neg pow relu rsqrt rsub sigmoid
    sigmoid_backward silu silu_backward sqrt sub tanh tanh_backward threshold_backward where
""")


@dataclasses.dataclass(frozen=True)
class Capture:
    """One micro-batch's forward and backward pass.

    Attributes:
        operators: in order of execution, all forward operators first.
        tensors: by index.
        micro_batch: first dimension of the inputs.
        layers: names of the modules that ran, in order of their first operator.
        stage_names: for each stage after the first, the layer or block at which it begins.
        stage_ipus: the IPU of each stage.
        checkpoints: tensors that the model marks with ``poptorch.recomputationCheckpoint``.
        outputs: tensors that the model returns.
        training: with a backward pass.
        fixed_batch: the model only ran at the micro-batch given, which cannot be changed then.
    """

    operators: Tuple[OperatorRecord, ...]
    tensors: Tuple[TensorRecord, ...]
    micro_batch: int
    layers: Tuple[str, ...]
    stage_names: Tuple[str, ...]
    stage_ipus: Tuple[int, ...]
    checkpoints: Tuple[int, ...] = ()
    outputs: Tuple[int, ...] = ()
    training: bool = True
    fixed_batch: bool = False

    @property
    def stages(self) -> int:
        """The number of pipeline stages."""
        return len(self.stage_ipus)

    def forward(self, stage: int) -> List[OperatorRecord]:
        """Return the forward operators of a stage."""
        return [o for o in self._of_stage.get(stage, ()) if not o.backward]

    def backward(self, stage: int) -> List[OperatorRecord]:
        """Return the backward operators of a stage."""
        return [o for o in self._of_stage.get(stage, ()) if o.backward]

    def parameters(self, stage: int) -> List[TensorRecord]:
        """Return the parameters of a stage: of the first stage that reads them."""
        return [t for t in self._owned(stage) if t.role == "parameter"]

    def buffers(self, stage: int) -> List[TensorRecord]:
        """Return the buffers and constants of a stage."""
        return [t for t in self._owned(stage) if t.role in ("buffer", "constant")]

    def inputs(self, stage: int) -> List[TensorRecord]:
        """Return the inputs that the host sends to a stage: the first that reads them."""
        return [t for t in self._owned(stage) if t.role == "input"]

    def _owned(self, stage: int) -> List[TensorRecord]:
        return self._owned_by.get(stage, [])

    @functools.cached_property
    def _of_stage(self) -> Dict[int, List[OperatorRecord]]:
        """Operators by stage."""
        found: Dict[int, List[OperatorRecord]] = {}
        for operator in self.operators:
            found.setdefault(operator.stage, []).append(operator)
        return found

    @functools.cached_property
    def places(self) -> Dict[int, int]:
        """By tensor, the tensor that lies on the same tiles: itself where none is known to.

        The result of a pointwise operator lies where its first operand of the result's size lies
        (popops, ``ElementWise.cpp``: what it is made like).
        """
        found = {tensor.index: tensor.index for tensor in self.tensors}
        for operator in self.operators:
            for index in operator.outputs if operator.is_pointwise else ():
                shape = self.tensors[index].shape
                like = [i for i in operator.inputs if self.tensors[i].shape == shape]
                if like:
                    found[index] = found[like[0]]
        return found

    @functools.cached_property
    def _owned_by(self) -> Dict[int, List[TensorRecord]]:
        """Tensors that exist before the first operator, by the first stage that reads them."""
        owners: Dict[int, int] = {}
        for operator in self.operators:
            for index in operator.inputs:
                owners.setdefault(index, operator.stage)
        found: Dict[int, List[TensorRecord]] = {}
        for tensor in self.tensors:
            if tensor.producer < 0:
                found.setdefault(owners.get(tensor.index, 0), []).append(tensor)
        return found

    def saved_bytes(self) -> int:
        """Return the bytes of activations that autograd keeps for the backward pass."""
        return sum(t.bytes for t in self.tensors if t.saved and t.role == "activation")

    def macs(self, *, backward: bool = False) -> int:
        """Return the multiply-adds of the forward, or of the backward pass."""
        return sum(o.macs for o in self.operators if o.backward == backward)

    def with_micro_batch(self, micro_batch: int) -> Capture:
        """Return the capture at another micro-batch.

        Raises:
            UserError: the micro-batch is below 1, or the model runs at one only.
        """
        if micro_batch < 1:
            raise UserError(f"micro-batch {micro_batch}: expected at least 1")
        if micro_batch == self.micro_batch:
            return self
        if self.fixed_batch:
            raise UserError(
                f"micro-batch {micro_batch}: the model could be traced at micro-batch "
                f"{self.micro_batch} only; capture it again with inputs of that size"
            )
        old = self.micro_batch
        tensors = tuple(
            _changed(
                t,
                bytes=t.bytes * micro_batch // old,
                shape=tuple(
                    d * micro_batch // old if i == _batch_dimension(t.shape, old) else d
                    for i, d in enumerate(t.shape)
                ),
            )
            if t.scales
            else t
            for t in self.tensors
        )
        operators = tuple(
            _changed(o, macs=o.macs * micro_batch // old) if o.macs else o for o in self.operators
        )
        return dataclasses.replace(
            self, tensors=tensors, operators=operators, micro_batch=micro_batch
        )

    def in_half_precision(self) -> Capture:
        """Return a capture in float32 as it is about to be in float16: half of what moves.

        What has four bytes an element is taken for float32; integers that are not (a loss's labels)
        are few.
        """
        tensors = tuple(
            _changed(t, bytes=t.bytes // 2)
            if t.role not in ("parameter", "constant") and t.bytes == 4 * math.prod(t.shape)
            else t
            for t in self.tensors
        )
        return dataclasses.replace(self, tensors=tensors)

    @functools.cached_property
    def with_weight_copies(self) -> Capture:
        """The capture with the float16 copies of float32 weights that products read (``16.32``).

        The forward product makes its copy anew for each micro-batch; where the gradient of its
        input reads it, it lives until then, as any other result of a cast does.
        """
        tensors, operators = list(self.tensors), list(self.operators)
        copies: Dict[int, int] = {}
        for operator in self.operators:
            weights = [i for i in operator.inputs if self.tensors[i].role == "parameter"]
            if not operator.passes or not weights:
                continue
            if operator.backward:
                roles = {self.tensors[i].role for i in operator.outputs}
                if operator.passes == 1 and "weight_gradient" in roles:
                    continue  # of the weight alone, which PopART has without the weight
                inputs = tuple(copies.get(i, i) for i in operator.inputs)
                operators[operator.index] = _changed(operator, inputs=inputs)
                continue
            made = []
            for index in weights:
                if index in copies:
                    continue
                copies[index] = len(tensors)
                made.append(copies[index])
                weight = self.tensors[index]
                fields = {"role": "activation", "producer": operator.index, "name": "cast"}
                size = 2 * math.prod(weight.shape)
                tensors.append(_changed(weight, index=copies[index], bytes=size, **fields))
            operators[operator.index] = _changed(operator, outputs=(*operator.outputs, *made))
        return dataclasses.replace(self, tensors=tuple(tensors), operators=tuple(operators))

    def with_splits(self, splits: Sequence[str]) -> Capture:
        """Return the capture cut into stages that begin at these layers, one IPU each.

        Raises:
            UserError: a split is no layer of the model, or they are out of order.
        """
        starts = [self._first_operator(split, splits) for split in splits]
        if any(after <= before for before, after in zip(starts, starts[1:])):
            raise UserError(
                f"splits={list(splits)}: not in the order in which the layers run; expected "
                f"{[s for _, s in sorted(zip(starts, splits))]}"
            )
        stage_of_forward: List[int] = []
        for operator in self.operators:
            stage = sum(operator.source >= start for start in starts)
            stage_of_forward.append(stage)
        operators = tuple(
            _changed(o, stage=stage_of_forward[i]) for i, o in enumerate(self.operators)
        )
        return dataclasses.replace(
            self,
            operators=operators,
            stage_names=tuple(splits),
            stage_ipus=tuple(range(len(splits) + 1)),
        )

    def split_layers(self) -> Optional[Tuple[str, ...]]:
        """Return the layers that cut the capture as it is cut, for `with_splits`; None: none do.

        A block that the model begins has any name; it may begin within a layer, or be gone back to.
        """
        forward = [o for o in self.operators if not o.backward]
        if any(after.stage < before.stage for before, after in zip(forward, forward[1:])):
            return None
        first: Dict[str, int] = {}
        starts: Dict[int, OperatorRecord] = {}
        for operator in forward:
            starts.setdefault(operator.stage, operator)
            for layer in _prefixes(operator.layer):
                first.setdefault(layer, operator.index)
        names = []
        for stage in range(1, self.stages):
            start = starts.get(stage)
            begun = [] if start is None else _prefixes(start.layer)
            begun = [layer for layer in begun if start and first[layer] == start.index]
            if not begun:
                return None
            # The layer that the stage is named after, or the outermost.
            named = [x for x in begun if f".{x}".endswith(f".{self.stage_names[stage - 1]}")]
            names.append((named or begun)[0])
        return tuple(names)

    def _first_operator(self, layer: str, splits: Sequence[str]) -> int:
        for operator in self.operators:
            if operator.layer == layer or operator.layer.startswith(f"{layer}."):
                return operator.index
        names = sorted({part for name in self.layers for part in _prefixes(name)})
        close = nearest(layer, names) or names[:3]
        raise UserError(
            f"splits={list(splits)}: {layer!r} is no layer that runs, so no stage can begin there; "
            f"nearest: {', '.join(close)}"
        )


def _changed(record: Record, **fields: object) -> Record:
    """Return a record with other fields; ``dataclasses.replace`` takes ten times as long."""
    new = object.__new__(type(record))
    new.__dict__.update(record.__dict__, **fields)
    return new


def _batch_dimension(shape: Tuple[int, ...], micro_batch: int) -> int:
    """Return the first dimension that holds the micro-batch."""
    return next((i for i, d in enumerate(shape) if d and d % micro_batch == 0), -1)


def _prefixes(name: str) -> List[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1) if name]
