"""Compiling: one trace of a model over one micro-batch becomes a fixed program."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import torch

from .. import _impl, _utils, poptorch_core
from .._args_parser import Args
from .._logging import logger
from ..options import Options
from . import (
    compute_device,
    consistency,
    handlers,
    loss_scale,
    losses,
    model_state,
    outputs,
    refusals,
)
from .consistency import Traced
from .optimize import passes
from .origins import Origin, find_location
from .outputs import Output
from .recorder import Recorder
from .tape import Block, Operation, Slot, operations_in, without_dead_code
from .together.program import Signature, Together
from .tracing import Trace, tracing
from .written import storage_of


@dataclass
class Program:
    """What the device runs for one micro-batch.

    ``run(*parameters, *buffers, *inputs, loss_scaling)`` computes it and returns the outputs, then
    the gradients in the order of ``gradient_names``. The buffers in ``written_buffers``, with the
    places that write to them (``tracked_buffers``: as far as PopTorch notices), and the inputs in
    ``written_inputs`` change in place. ``block`` is what was recorded; ``executable`` computes the
    same, rewritten.
    """

    make_executable: Callable[[], passes.Executable]
    make_together: Callable[[], Together]
    block: Block
    parameter_names: List[str]
    buffer_names: List[str]
    written_buffers: Dict[str, str]
    tracked_buffers: Dict[str, str]
    written_inputs: List[int]
    arguments: List[Traced]
    outputs_structure: Any
    output_on_device: List[bool]
    device_outputs: List[Output]
    gradient_names: List[str]
    trained: bool
    random: bool
    device: torch.device
    gradient_counts: Optional[loss_scale.GradientCounts]
    placements: Dict[Tuple[int, int, int], Origin]
    stage_ipus: List[int]
    blocks: List[Tuple[str, Tuple[int, int, int]]] = field(default_factory=list)

    @functools.cached_property
    def executable(self) -> passes.Executable:
        """What computes one micro-batch; made when it is asked for."""
        return self.make_executable()

    def run(self, *arguments: torch.Tensor) -> List[torch.Tensor]:
        """Compute one micro-batch."""
        return self.executable.run(self.prepare(arguments), arguments)

    def prepare(self, state: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        """Compute what holds until the next weight update, given parameters and what follows."""
        return self.executable.prepare(state[: len(self.parameter_names)])

    @property
    def exchanges(self) -> bool:
        """Tell whether replicas exchange values: ``run`` then stops at each collective."""
        return any(operation.exchanges for operation in operations_in(self.block))

    @property
    def inputs(self) -> List[Traced]:
        """Shapes and types of a micro-batch's inputs."""
        return self.arguments[len(self.parameter_names) + len(self.buffer_names) : -1]

    @property
    def input_dtypes(self) -> List[torch.dtype]:
        """The types in which the inputs are taken."""
        return [traced.dtype for traced in self.inputs]

    def check_arguments(self, arguments: Sequence[torch.Tensor]) -> None:
        """Check what ``run`` is about to be called with, without the loss scaling.

        Raises:
            poptorch.Error: an argument is not what the program was traced with.

        """
        inputs = [f"input {at}" for at in range(len(self.input_dtypes))]
        names = [*self.parameter_names, *self.buffer_names, *inputs]
        consistency.check_arguments(names, arguments, self.arguments)

    @property
    def operations(self) -> List[Operation]:
        """Every operation of the program, in order."""
        return list(operations_in(self.block))


class _Bound:
    """The arguments of a program: inputs, parameters and buffers as the device holds them.

    Args:
        trace: the trace in progress, whose recorder gives each of them a slot.
        module: whose parameters and buffers they are.
        inputs: the arguments of one micro-batch.
        view_parameter: see `compile_program`.

    Raises:
        poptorch.Error: an input is empty, or of a type that the device does not have.

    """

    def __init__(
        self,
        trace: Trace,
        module: torch.nn.Module,
        inputs: Args,
        view_parameter: Callable[[str, torch.Tensor], torch.Tensor],
    ) -> None:
        self._trace = trace
        self._module = module
        self._view_parameter = view_parameter
        self._slots: Dict[str, Slot] = {}
        self._tensors: Dict[str, torch.Tensor] = {}
        parameters, buffers = model_state.variables(module)
        self.parameter_names = list(parameters)
        self.buffer_names = list(buffers)
        recorder = trace.recorder
        host_inputs = inputs.asPackedFlatTuple()
        self.inputs = [trace.on_device(tensor) for tensor in host_inputs]
        self.input_slots = [recorder.new_slot(tensor) for tensor in self.inputs]
        self.loss_scaling = torch.ones(())
        self._scaling_slot = recorder.new_slot(self.loss_scaling)
        for tensor in host_inputs:
            if tensor.numel() == 0:
                raise refusals.zero_sized(tensor, recorder.where())
            if refusals.is_unsupported(tensor.dtype):
                dtype, shape = tensor.dtype, tensor.shape
                raise refusals.unsupported_type(dtype, "an input", shape, recorder.where())
        self.args, self.kwargs = _utils.reconstructTensorStructure(
            (inputs.args, inputs.kwargs), self.inputs
        )

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the device's parameters and buffers in the place of the module's meanwhile."""
        with model_state.swapped(self._module, self._replace) as self._tensors:
            yield

    def _replace(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        recorder = self._trace.recorder
        if refusals.is_unsupported(tensor.dtype):
            raise refusals.unsupported_type(tensor.dtype, name, tensor.shape, recorder.where())
        if not model_state.is_variable(tensor):
            return self._constant(tensor)
        parameter = name in self.parameter_names
        viewed = self._view_parameter(name, tensor) if parameter else tensor
        copied = self._trace.on_device(viewed, parameter)
        self._slots[name] = recorder.new_slot(copied)
        return copied

    def _constant(self, tensor: torch.Tensor) -> torch.Tensor:
        recorder = self._trace.recorder
        constant = recorder.constant(tensor)
        if isinstance(tensor, torch.nn.Parameter):
            parameter = torch.nn.Parameter(constant, requires_grad=False)
            recorder.same_slot(parameter, constant)
            return parameter
        return constant

    @property
    def parameters(self) -> Dict[str, torch.Tensor]:
        """The device's parameters by name."""
        return {name: self._tensors[name] for name in self.parameter_names}

    @property
    def slots(self) -> List[Slot]:
        """The slots of all arguments, in the order in which a program takes them."""
        named = [self._slots[name] for name in (*self.parameter_names, *self.buffer_names)]
        return [*named, *self.input_slots, self._scaling_slot]

    def storages(self) -> Set[int]:
        """Return the addresses of the storages of all arguments."""
        return {storage_of(tensor) for tensor in (*self.inputs, *self._tensors.values())}

    def written_buffers(self) -> Dict[str, str]:
        """Return the buffers that the program writes to, each with the place that does."""
        written = self._trace.recorder.written
        writers = {name: written.by(self._tensors[name]) for name in self.buffer_names}
        return {
            name: writer.origin.location for name, writer in writers.items() if writer is not None
        }

    def tracked_buffers(self) -> Dict[str, str]:
        """Return the buffers that PopTorch sees the program write to, each with the place."""
        seen = self._trace.recorder.written.seen_by_poptorch
        writers = {name: seen(self._tensors[name]) for name in self.buffer_names}
        return {name: by.origin.location for name, by in writers.items() if by is not None}

    def written_inputs(self) -> List[int]:
        """Return the positions of the inputs that the program writes to."""
        written = self._trace.recorder.written
        return [at for at, tensor in enumerate(self.inputs) if written.by(tensor) is not None]


def compile_program(
    model: Any,
    inputs: Args,
    options: Options,
    training: bool,
    view_parameter: Callable[[str, torch.Tensor], torch.Tensor] = lambda name, tensor: tensor,
    device: torch.device = compute_device.HOST,
) -> Program:
    """Trace the model and return its program.

    The phases, in order, and what each adds to the trace::

        bind       inputs, parameters and buffers get copies on the device, each with a slot
        forward    the model is called once: operators, blocks, losses, checkpoints
        outputs    what it returns gets slots; transfers that overlap are checked
        backward   (training) the gradients of the one loss: operators, and slots by parameter
        assemble   dead operators leave; the rest becomes one function of the bound slots

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
    trace = Trace(options, training)
    module = model if isinstance(model, torch.nn.Module) else torch.nn.Module()
    gradients: Dict[str, Slot] = {}
    with torch.inference_mode(False):
        bound = _Bound(trace, module, inputs, view_parameter)
        _check_updatable(options, bound.buffer_names)
        with bound.in_place(), tracing(trace):
            arguments = [trace.recorder.traced[slot] for slot in bound.slots]
            result = _forward(trace, model, bound)
            returned = outputs.bind(trace, result, bound.storages(), bound.input_slots, options)
            if training:
                definition = refusals.definition(getattr(model, "forward", model))
                gradients = _backward(trace, bound.parameters, bound.loss_scaling, definition)
        written_buffers, written_inputs = bound.written_buffers(), bound.written_inputs()
        tracked_buffers = bound.tracked_buffers()
    block, make_executable, make_together = _assemble(
        trace.recorder, bound, arguments, returned.slots, gradients, device
    )
    return Program(
        make_executable=make_executable,
        make_together=make_together,
        block=block,
        parameter_names=bound.parameter_names,
        buffer_names=bound.buffer_names,
        written_buffers=written_buffers,
        tracked_buffers=tracked_buffers,
        written_inputs=written_inputs,
        arguments=arguments,
        outputs_structure=returned.structure,
        output_on_device=returned.on_device,
        device_outputs=returned.of_device,
        gradient_names=list(gradients),
        trained=training,
        random=any(operation.random for operation in operations_in(block)),
        device=device,
        gradient_counts=trace.gradient_counts,
        placements=trace.recorder.used_placements,
        stage_ipus=trace.stages.ipus,
        blocks=trace.blocks,
    )


def _check_updatable(options: Options, buffer_names: Sequence[str]) -> None:
    # popart/willow/src/popx/irlowering.cpp:3071
    for name in options._popart.options.get("updatableNamedBuffers", ()):
        if name not in buffer_names:
            raise _impl.createPoptorchError(
                f"updatableNamedBuffers: the model has no buffer {name} that can change; it has "
                f"{', '.join(buffer_names) or 'none'}. Those of integers are constants."
            )


def _forward(trace: Trace, model: Any, bound: _Bound) -> Any:
    """Call the model and return its result; an error says which line of the model it is of."""
    try:
        result = model(*bound.args, **bound.kwargs)
    except poptorch_core.Error as error:
        error.add_location(find_location(error.__traceback__))
        raise
    except RuntimeError as error:
        refusal = trace.recorder.refusal
        if refusal is None or "TorchScript interpreter" not in str(error):
            raise
        refusal.add_location(find_location(error.__traceback__))
        raise refusal from error
    trace.recorder.user_code = False
    return result


def _assemble(
    recorder: Recorder,
    bound: _Bound,
    arguments: Sequence[Traced],
    outputs: List[Slot],
    gradients: Dict[str, Slot],
    device: torch.device,
) -> Tuple[Block, Callable[[], passes.Executable], Callable[[], Together]]:
    """Return the operators that the results need, as recorded, and what makes them programs."""
    recorder.release()
    recorder.block.results = [*outputs, *gradients.values()]
    block = without_dead_code(recorder.block, set(recorder.constants))
    handlers.check_unread(block)
    known = {slot: Traced.of(tensor) for slot, tensor in recorder.constants.items()}
    consistency.check_program(block, {**known, **dict(zip(bound.slots, arguments))})
    moved = compute_device.moved(block, device)
    constants = compute_device.sent(recorder.constants, device)
    slots, parameters = bound.slots, len(bound.parameter_names)
    buffers = parameters + len(bound.buffer_names)
    signature = Signature(
        slots[:parameters],
        slots[parameters:buffers],
        slots[buffers:-1],
        slots[-1],
        outputs,
        list(gradients.values()),
        constants,
    )
    known.update(zip(slots, arguments))
    alone = functools.partial(passes.executable, moved, slots, parameters, constants, device)
    return block, alone, functools.partial(Together, moved, signature, known, device)


def _backward(
    trace: Trace, parameters: Dict[str, torch.Tensor], scaling: torch.Tensor, forward: str
) -> Dict[str, Slot]:
    """Append the backward pass and return the gradients' slots by the parameter's name."""
    recorder = trace.recorder
    loss = losses.final_loss(recorder, trace.losses, forward)
    trained = {name: tensor for name, tensor in parameters.items() if tensor.requires_grad}
    if not trained or not loss.requires_grad:
        return {}
    seed = scaling.to(loss.dtype).expand_as(loss)
    recorder.nodes.follow()
    gradients: Sequence[Optional[torch.Tensor]] = torch.autograd.grad(
        loss, list(trained.values()), seed, allow_unused=True
    )
    recorder.nodes.at_work = None
    found: Dict[str, Slot] = {}
    storages = set()
    for name, gradient in zip(trained, gradients):
        if gradient is None:
            continue
        # A gradient is added to in place from the second micro-batch on: it must be nobody else's.
        storage = storage_of(gradient)
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
