"""Compiling: one trace of a model over one micro-batch becomes a fixed program."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch

from .. import _impl, _utils, enums, poptorch_core
from .._args_parser import Args
from .._logging import logger
from ..options import Options
from . import (
    compute_device,
    dtypes,
    float_exceptions,
    loss_scale,
    losses,
    model_state,
    overlap,
    refusals,
)
from .checkpointing import without_recomputation
from .functions import FunctionMode
from .overlap import Overlap
from .recorder import Recorder, Watch, recording
from .tape import Block, Operation, Slot, operations_in, to_function, without_dead_code


@dataclass
class Program:
    """What the device runs for one micro-batch.

    ``run(*parameters, *buffers, *inputs, loss_scaling)`` computes it and returns the outputs, then
    the gradients in the order of ``gradient_names``. The buffers in ``written_buffers``, with the
    places that write to them, and the inputs in ``written_inputs`` change in place.
    """

    run: Callable[..., List[torch.Tensor]]
    block: Block
    parameter_names: List[str]
    buffer_names: List[str]
    written_buffers: Dict[str, str]
    written_inputs: List[int]
    input_dtypes: List[torch.dtype]
    outputs_structure: Any
    output_on_device: List[bool]
    gradient_names: List[str]
    trained: bool
    random: bool
    device: torch.device
    gradient_counts: Optional[loss_scale.GradientCounts]
    placements: List[Tuple[int, int, int]]
    blocks: List[Tuple[str, Tuple[int, int, int]]] = field(default_factory=list)

    @property
    def operations(self) -> List[Operation]:
        """Every operation of the program, in order."""
        return list(operations_in(self.block))


_current: List[_Trace] = []


class _Trace:
    """One trace in progress."""

    def __init__(self, options: Options, training: bool) -> None:
        self.training = training
        self.stages_manager = options._execution_strategy.stages_manager
        popart = options._popart.options
        watches: List[Watch] = []
        if popart.get("enableFloatingPointChecks", False):
            watches.append(float_exceptions.watch)
        self.gradient_counts: Optional[loss_scale.GradientCounts] = None
        if training and loss_scale.is_enabled(popart):
            self.gradient_counts = loss_scale.GradientCounts(popart)
            watches.append(self.gradient_counts.watch)
        stochastic_rounding = bool(popart.get("enableStochasticRounding", False))
        self.recorder = Recorder(stochastic_rounding, watches)
        self.losses: List[losses.Loss] = []
        self.blocks: List[Tuple[str, Tuple[int, int, int]]] = []
        # Convolutions before the `MultiConv` that is open, if one is.
        self.multi_conv_start: Optional[int] = None
        self.checkpoints: List[Slot] = []
        self.overlaps: List[Overlap] = []

    def convolutions(self) -> int:
        """Return how many convolutions there are so far."""
        return sum(
            "convolution" in operation.name for operation in operations_in(self.recorder.block)
        )

    def note_loss(self, loss: torch.Tensor) -> None:
        slot = self.recorder.slot_of(loss)
        if slot is not None:
            self.losses.append(losses.Loss(slot, loss, self.recorder.where()))

    def begin_block(self, name: str, placement: Tuple[int, int, int]) -> None:
        """Place the operations that follow."""
        self.recorder.placement = placement
        if (name, placement) not in self.blocks:
            self.blocks.append((name, placement))

    def end_block(self) -> None:
        """Refuse operations until another block begins."""
        self.recorder.placement = None

    def on_device(self, tensor: torch.Tensor, parameter: bool = False) -> torch.Tensor:
        """Return a copy of a host tensor, as the device holds it, known to the recorder."""
        copied = dtypes.demoted(tensor.detach().clone())
        if parameter:
            copied = torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied


def current() -> Optional[_Trace]:
    """Return the trace in progress, if any."""
    return _current[-1] if _current else None


def check_inference(name: str, instead: str) -> None:
    """Refuse an operation of PopTorch's own that has no backward pass, in a model that is trained.

    Raises:
        poptorch.Error: names the operation, the line and what to write instead.

    """
    trace = current()
    if trace is not None and trace.training:
        raise refusals.refuse(
            f"poptorch.{name}() is only supported in inference: {instead}", trace.recorder.where()
        )


def checkpoint(tensor: torch.Tensor) -> torch.Tensor:
    """Note a tensor that is kept for the backward pass where others are recomputed."""
    trace = current()
    if trace is not None:
        slot = trace.recorder.slot_of(tensor)
        if slot is not None:
            trace.checkpoints.append(slot)
    return tensor


def overlapped(
    tensor: torch.Tensor, original: torch.Tensor, kind: str, mode: enums.OverlapMode
) -> torch.Tensor:
    """Note an input or output whose transfer is to overlap with computation."""
    trace = current()
    if trace is not None:
        before, after = trace.recorder.slots_of([original, tensor])
        trace.overlaps.append(Overlap(kind, mode, before, after, trace.recorder.where()))
    return tensor


@contextlib.contextmanager
def _tracing(trace: _Trace) -> Iterator[None]:
    """Make everything called meanwhile part of the program."""
    host_random_state = torch.get_rng_state()
    _current.append(trace)
    # torch's checks of a distribution's parameters read their values.
    validates = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    # Attention in one kernel is no operator of the device's; spelled out it is.
    fused_attention = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(False)
    # oneDNN's recurrent layers keep a workspace that torch hands to their own backward only. What
    # is recorded without oneDNN still picks its kernels, oneDNN's too, when it runs.
    onednn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    _impl.setIpuContext(True)
    poptorch_core.setCompiling(True)
    trace.stages_manager.clearDebug()
    try:
        with recording(trace.recorder), FunctionMode(
            trace.recorder, trace.note_loss, trace.training
        ), without_recomputation():
            yield
    finally:
        trace.stages_manager.printDebug()
        torch.distributions.Distribution.set_default_validate_args(validates)
        torch.backends.cuda.enable_flash_sdp(fused_attention)
        torch._C._set_mkldnn_enabled(onednn)
        poptorch_core.setCompiling(False)
        _impl.setIpuContext(False)
        _current.pop()
        torch.set_rng_state(host_random_state)


def compile_program(
    model: Any,
    inputs: Args,
    options: Options,
    training: bool,
    view_parameter: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, tensor: tensor,
    device: torch.device = compute_device.HOST,
) -> Program:
    """Trace the model and return its program.

    Args:
        model: a module or a function.
        inputs: the arguments of one micro-batch.
        options: the model's options.
        training: compute the gradients of the loss as well.
        view_parameter: takes a parameter's name and the parameter, and returns what one replica
            has of it.
        device: that computes it.

    Raises:
        poptorch.Error: the device could not run this.

    """
    trace = _Trace(options, training)
    recorder = trace.recorder
    module = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
    slots: Dict[str, Slot] = {}
    host_parameters, host_buffers = model_state.unique_tensors(module)

    def replace(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_complex():
            raise refusals.complex_type(tensor, name, recorder.where())
        parameter = name in host_parameters
        viewed = view_parameter(name, tensor) if parameter else tensor
        copied = trace.on_device(viewed, parameter)
        slots[name] = recorder.new_slot(copied)
        return copied

    with torch.inference_mode(False):
        host_inputs = inputs.asPackedFlatTuple()
        device_inputs = [trace.on_device(tensor) for tensor in host_inputs]
        input_slots = [recorder.new_slot(tensor) for tensor in device_inputs]
        scaling = torch.ones(())
        scaling_slot = recorder.new_slot(scaling)
        for tensor in host_inputs:
            if tensor.numel() == 0:
                raise refusals.zero_sized(tensor, recorder.where())
            if tensor.is_complex():
                raise refusals.complex_type(tensor, "an input", recorder.where())
        args, kwargs = _utils.reconstructTensorStructure(
            (inputs.args, inputs.kwargs), device_inputs
        )
        with model_state.swapped(module, replace) as tensors:
            gradients: Dict[str, Slot] = {}
            with _tracing(trace):
                try:
                    result = model(*args, **kwargs)
                except poptorch_core.Error as error:
                    error.add_location(recorder.where_raised(error))
                    raise
                recorder.user_code = False
                held = {
                    tensor.untyped_storage().data_ptr()
                    for group in (device_inputs, tensors.values(), recorder.constant_tensors())
                    for tensor in group
                }
                returned = [recorder.slot_of(t) for t in _utils.flattenTensorStructure(result)]
                overlap.check(trace.overlaps, recorder.block, input_slots, returned, options)
                outputs = _outputs(recorder, result, held)
                if training:
                    parameters = {name: tensors[name] for name in host_parameters}
                    forward = refusals.definition(getattr(model, "forward", model))
                    gradients = _backward(trace, parameters, scaling, forward)
        writers = {
            name: recorder.written_storages.get(tensors[name].untyped_storage().data_ptr())
            for name in host_buffers
        }
        written_inputs = [
            position
            for position, tensor in enumerate(device_inputs)
            if tensor.untyped_storage().data_ptr() in recorder.written_storages
        ]
    skeleton = _utils.reconstructTensorStructure(
        result,
        [
            tensor if slot is None else torch.empty(0)
            for tensor, slot in zip(_utils.flattenTensorStructure(result), outputs)
        ],
    )
    recorder.release()
    recorder.block.results = [slot for slot in outputs if slot is not None]
    recorder.block.results += list(gradients.values())
    order = [slots[name] for name in (*host_parameters, *host_buffers)]
    block = without_dead_code(recorder.block)
    updatable = options._popart.options.get("updatableNamedBuffers", ())
    for name in updatable:
        if name not in host_buffers:
            raise _impl.createPoptorchError(
                f"updatableNamedBuffers: the model has no buffer {name}; it has "
                f"{', '.join(host_buffers) or 'none'}."
            )
    return Program(
        run=to_function(
            compute_device.moved(block, device),
            [*order, *input_slots, scaling_slot],
            compute_device.sent(recorder.constants, device),
        ),
        block=block,
        parameter_names=list(host_parameters),
        buffer_names=list(host_buffers),
        written_buffers={
            name: writer.origin.location for name, writer in writers.items() if writer is not None
        },
        written_inputs=written_inputs,
        input_dtypes=[tensor.dtype for tensor in device_inputs],
        outputs_structure=skeleton,
        output_on_device=[slot is not None for slot in outputs],
        gradient_names=list(gradients),
        trained=training,
        random=any(operation.random for operation in operations_in(block)),
        device=device,
        gradient_counts=trace.gradient_counts,
        placements=list(recorder.used_placements) or [(0, 0, 0)],
        blocks=trace.blocks,
    )


def _outputs(recorder: Recorder, result: Any, held: Set[int]) -> List[Optional[Slot]]:
    """Return the slot of each tensor in the model's result; None for one that is not the device's.

    Args:
        recorder: knows the device's tensors.
        result: what the model returned.
        held: addresses of the storages of inputs, parameters, buffers and constants: outputs that
            share one are copied, as it may change before the host reads them.

    """
    slots: List[Optional[Slot]] = []
    for tensor in _utils.flattenTensorStructure(result):
        if recorder.slot_of(tensor) is None:
            warnings.warn(
                f"Output expected to be on the IPU but is on {tensor.device.type}", stacklevel=2
            )
        elif tensor.untyped_storage().data_ptr() in held:
            tensor = tensor.detach().clone()
        slots.append(recorder.slot_of(tensor))
    return slots


def _backward(
    trace: _Trace, parameters: Dict[str, torch.Tensor], scaling: torch.Tensor, forward: str
) -> Dict[str, Slot]:
    """Append the backward pass and return the gradients' slots by the parameter's name."""
    recorder = trace.recorder
    loss = losses.final_loss(recorder, trace.losses, forward)
    trained = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
    if not trained or not loss.requires_grad:
        return {}
    seed = scaling.to(loss.dtype).expand_as(loss)
    recorder.follow_nodes()
    gradients: Sequence[Optional[torch.Tensor]] = torch.autograd.grad(
        loss, list(trained.values()), seed, allow_unused=True
    )
    recorder.node_origin = None
    found: Dict[str, Slot] = {}
    storages = set()
    for name, gradient in zip(trained, gradients):
        if gradient is None:
            continue
        # A gradient is added to in place from the second micro-batch on: it must be nobody else's.
        storage = gradient.untyped_storage().data_ptr()
        owned = gradient.is_contiguous() and gradient.dtype == trained[name].dtype
        if not owned or storage in storages or recorder.slot_of(gradient) is None:
            gradient = gradient.to(trained[name].dtype).clone()
        storages.add(storage)
        slot = recorder.slot_of(gradient)
        assert slot is not None
        found[name] = slot
    return found


def warn_of_required_gradients(inputs: Args) -> Args:
    """Return the inputs detached, with a warning where one requires a gradient."""
    detached = inputs.clone()

    def detach(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.requires_grad:
            return tensor
        logger.warning(
            "Input tensor has requires_grad=True set. This tensor will be detached because "
            "backward pass via inputs is not supported."
        )
        return tensor.detach()

    detached.forEach(detach)
    return detached
