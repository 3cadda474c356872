"""The trace in progress: what a model's calls leave in it while it is compiled."""

from __future__ import annotations

import contextlib
from typing import Any, Iterator, List, Optional, Tuple

import torch

from ipu_proxynorm.stages import StageCount

from .. import _impl, enums, poptorch_core
from ..options import Options
from . import float_exceptions, loss_scale, losses, refusals
from .arithmetic import dtypes, strided_norms
from .autocast import without_autocast
from .checkpointing import without_recomputation
from .functions import FunctionMode
from .overlap import Overlap
from .packages import torch_spline_conv
from .recorder import Recorder, Watch, kernels_of_onednn, recording
from .tape import Slot, operations_in

_current: List[Trace] = []


class Trace:
    """One trace in progress."""

    def __init__(self, options: Options, training: bool) -> None:
        self.training = training
        #: Of all processes.
        self.replicas = options.replication_factor * options.Distributed.numProcesses
        strategy = options._execution_strategy
        self.stages_manager = strategy.stages_manager
        self._phases_overlap = strategy.backendOptions().get("serial_phases_execution") is False
        popart = options._popart.options
        watches: List[Watch] = []
        if popart.get("enableFloatingPointChecks", False):
            watches.append(float_exceptions.watch)
        self.gradient_counts: Optional[loss_scale.GradientCounts] = None
        if training and loss_scale.is_enabled(popart):
            self.gradient_counts = loss_scale.GradientCounts(popart)
            watches.append(self.gradient_counts.watch)
        stochastic_rounding = bool(popart.get("enableStochasticRounding", False))
        strided_groups = bool(popart.get(strided_norms.OPTION, False))
        stable_norms = bool(popart.get("enableStableNorm", False))
        self.recorder = Recorder(
            stochastic_rounding, watches, training, strided_groups, stable_norms
        )
        self.losses: List[losses.Loss] = []
        self.blocks: List[Tuple[str, Tuple[int, int, int]]] = []
        self.stages = StageCount()
        # Convolutions before the `MultiConv` that is open, if one is.
        self.multi_conv_start: Optional[int] = None
        # Loops and branches that have begun, innermost last.
        self.open_blocks: List[Any] = []
        self.checkpoints: List[Slot] = []
        self.overlaps: List[Overlap] = []

    def convolutions(self) -> int:
        """Return how many convolutions there are so far."""
        return sum(
            "convolution" in operation.name for operation in operations_in(self.recorder.block)
        )

    def note_loss(self, loss: torch.Tensor) -> None:
        """Note a tensor that the model may be trained on."""
        slot = self.recorder.slot_of(loss)
        if slot is not None:
            self.losses.append(losses.Loss(slot, loss, self.recorder.where()))

    def begin_block(self, name: str, placement: Tuple[int, int, int]) -> None:
        """Place the operations that follow.

        Raises:
            poptorch.Error: phases that run at the same time meet on an IPU
                (popart_compiler/source/Compiler.cpp:1273).

        """
        _, phase, ipu = placement
        if self._phases_overlap and phase % 2 != ipu % 2:
            raise refusals.refuse(
                "When phases are executed in parallel: even phases must run on even IPUs and odd "
                f"phases on odd IPUs, but phase {phase} is to run on IPU {ipu}: place it with "
                "Phase.ipus or Stage.ipu",
                self.recorder.where(),
            )
        # Without an IPU, as in a phase that names none, it is no block: CompilerImpl.cpp:426.
        self.recorder.placement = placement if placement[2] >= 0 else None
        self.recorder.stage = self.stages.begin(placement[2])
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


def current() -> Optional[Trace]:
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
def tracing(trace: Trace) -> Iterator[None]:
    """Make everything called meanwhile part of the program."""
    host_random_state = torch.get_rng_state()
    _current.append(trace)
    # torch's checks of a distribution's parameters read their values.
    validates = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    # Attention in one kernel is no operator of the device's; spelled out it is.
    fused_attention = torch.backends.cuda.flash_sdp_enabled()
    torch.backends.cuda.enable_flash_sdp(False)
    _impl.setIpuContext(True)
    poptorch_core.setCompiling(True)
    trace.stages_manager.clearDebug()
    try:
        # oneDNN's recurrent layers keep a workspace that torch hands to their own backward only.
        # What is recorded without oneDNN still picks its kernels, oneDNN's too, when it runs.
        with without_autocast(), kernels_of_onednn(False), recording(trace.recorder), FunctionMode(
            trace.recorder, trace.note_loss, trace.training
        ), without_recomputation(), torch_spline_conv.seen():
            yield
    finally:
        trace.stages_manager.printDebug()
        torch.distributions.Distribution.set_default_validate_args(validates)
        torch.backends.cuda.enable_flash_sdp(fused_attention)
        poptorch_core.setCompiling(False)
        _impl.setIpuContext(False)
        _current.pop()
        torch.set_rng_state(host_random_state)
