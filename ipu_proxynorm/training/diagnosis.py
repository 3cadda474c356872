"""Finds why a loss is not finite: a second forward pass on the device, every layer watched."""

from __future__ import annotations

import dataclasses
from typing import Any, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import inference_options, precision_of
from ipu_proxynorm.norm import Pending, StandIn
from ipu_proxynorm.run.run import Run
from ipu_proxynorm.training.averaging import weights_replaced


class Diverged(UserError):
    """The loss or the weights are not finite any more; the run cannot go on."""


class ActivationProbe(nn.Module):
    """A program that tells of every layer's output how large it is and whether it is finite.

    Args:
        program: takes images, labels and, where images are mixed, numbers; holds ``model``.
    """

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program
        self.layers: List[str] = []  # one list: PopTorch works on a copy of the module

    def forward(self, *inputs: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Return loss, largest magnitudes ``(layers,)`` and whether all is finite ``(layers,)``.

        ``layers`` names them, in the order in which they ended; a layer within a layer comes first.
        """
        self.layers.clear()
        largest: List[Tensor] = []
        finite: List[Tensor] = []

        def watch(name: str) -> Any:
            def hook(module: nn.Module, arguments: Any, output: Any) -> None:
                if isinstance(output, StandIn):
                    output = output.pending
                if isinstance(output, Pending):
                    output = output.value
                if isinstance(output, Tensor) and output.is_floating_point():
                    self.layers.append(name)
                    largest.append(output.abs().amax().to(torch.float32))
                    # Neither infinity nor NaN equals 0 when taken from itself.
                    finite.append((output - output == 0).to(torch.float32).amin())

            return hook

        handles = [
            module.register_forward_hook(watch(name))
            for name, module in self.program.model.named_modules()
            if name
        ]
        try:
            loss, _ = self.program(*inputs)
        finally:
            for handle in handles:
                handle.remove()
        return loss, torch.stack(largest), torch.stack(finite)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the forward pass showed: the layer that overflowed first, or the largest output.

    ``micro_batch`` counts from 0, in the order of the images of the host call over all processes.
    ``largest`` is the
    magnitude in ``layer``, or in the layer before it where ``overflowed``.
    """

    overflowed: bool
    layer: str
    micro_batch: int
    largest: float


def worst(findings: Sequence[Optional[Finding]]) -> Optional[Finding]:
    """Return which of the processes' findings one process with all micro-batches would have had."""
    known = [finding for finding in findings if finding is not None]
    overflowed = [finding for finding in known if finding.overflowed]
    if overflowed:
        return min(overflowed, key=lambda finding: finding.micro_batch)
    return max(known, key=lambda finding: finding.largest) if known else None


def find_overflow(
    run: Run, weights: Mapping[str, Tensor], inputs: Sequence[Tensor]
) -> Optional[Finding]:
    """Rerun the forward pass of a host call, micro-batch by micro-batch, until a layer overflows.

    It runs on one replica, in the run's precision and in training mode, so Batch Norm takes the
    micro-batch's statistics; dropout and stochastic depth draw anew. float16 outputs at the largest
    float16 number count as overflowed, too: an IPU may stop there instead of at infinity.

    Args:
        run: whose program it was; no other program may hold its IPUs.
        weights: state dict to run with.
        inputs: the inputs of the host call, one row an image.

    Returns:
        The first layer that overflowed; else the layer with the largest output.
    """
    config = dataclasses.replace(
        run.config.ipu,
        execution="sharded",
        replication_factor=1,
        floating_point_exceptions=False,
    )
    options = inference_options(dataclasses.replace(run.config, ipu=config))
    options.deviceIterations(1)
    limit = torch.finfo(precision_of(config.precision).activations).max
    run.program.overlap_io = False  # the probe returns other outputs
    probe = ActivationProbe(run.program)
    executor = poptorch.inferenceModel(probe, options)
    size, best = config.micro_batch_size, None
    instance = run.processes.instance
    total, own = run.config.ipu.replication_factor, instance.replicas(run.config.ipu)

    def position(number: int) -> int:
        """Return where the micro-batch is among those of all processes."""
        step, replica = divmod(number, own)
        return step * total + instance.index * own + replica

    with weights_replaced(run.model, weights):
        for number in range(len(inputs[0]) // size):
            rows = slice(number * size, (number + 1) * size)
            _, largest, finite = executor(*(tensor[rows] for tensor in inputs))
            magnitudes = largest.reshape(-1).tolist()
            for index, (name, magnitude) in enumerate(zip(probe.layers, magnitudes)):
                if not finite.reshape(-1)[index] or magnitude >= limit:
                    before = magnitudes[index - 1] if index else 0.0
                    best = Finding(True, name, position(number), before)
                    break
                if best is None or magnitude > best.largest:
                    best = Finding(False, name, position(number), magnitude)
            if best is not None and best.overflowed:
                break
        executor.destroy()
    return best


def not_finite(weights: Mapping[str, Tensor]) -> List[str]:
    """Return the names of the tensors that hold an infinity or a NaN."""
    return [
        name
        for name, tensor in weights.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]


def advice(config: RunConfig, gradients: bool) -> str:
    """Return what to try, the likeliest first.

    Args:
        config: the configuration of the run.
        gradients: the backward pass overflowed, not the forward pass.
    """
    half = config.ipu.precision != "32.32"
    scaling = config.optimizer.loss_scaling
    tries = []
    if half and gradients and scaling > 1:
        tries.append(f"a lower optimizer.loss_scaling (it is {scaling:g})")
    tries.append(f"a lower optimizer.lr (it is {config.optimizer.lr:g})")
    tries.append(f"a longer schedule.warmup_epochs (it is {config.schedule.warmup_epochs:g})")
    if config.ipu.precision == "16.16":
        tries.append("ipu.precision=16.32")
    if half:
        tries.append("ipu.precision=32.32")
    return "try " + ", ".join(tries[:-1]) + f" or {tries[-1]}"


def loss_not_finite(
    run: Run,
    where: str,
    loss: float,
    weights: Mapping[str, Tensor],
    read: int,
    step: int,
    inputs: Sequence[Tensor],
) -> Diverged:
    """Return the error for a loss that is not finite, with what a second forward pass shows.

    Args:
        run: whose IPUs are free.
        where: the host call, in words.
        loss: its loss.
        weights: finite, the last that were read from the IPUs before it.
        read: step after which they were read.
        step: the step of the host call, counted from 1 over the run.
        inputs: the inputs of the host call.
    """
    finding: Optional[Finding] = None
    with run.processes.together():
        finding = find_overflow(run, weights, inputs)
    finding = worst(run.processes.gather(finding))
    config = run.config
    text = f"the loss is {loss} at {where}"
    if finding is None:
        return Diverged(f"{text}; {advice(config, gradients=True)}")
    calls = step - 1 - read
    used = "with the weights right before it"
    if calls:
        used = (
            f"with the weights {calls} host calls before it (training.weights_every=1 keeps those "
            f"right before it)"
        )
    kind = str(precision_of(config.ipu.precision).activations).rpartition(".")[2]
    if finding.overflowed:
        return Diverged(
            f"{text}: in a second forward pass {used}, layer {finding.layer!r} is the first whose "
            f"output overflows {kind} (in micro-batch {finding.micro_batch}; the layer before "
            f"reaches {finding.largest:.3g}); {advice(config, gradients=False)}"
        )
    return Diverged(
        f"{text}: in a second forward pass {used} no layer overflows {kind} (the largest "
        f"activation is {finding.largest:.3g}, in layer {finding.layer!r}), so a gradient did, or "
        f"the weights grew in between; {advice(config, gradients=True)}"
    )


def weights_not_finite(run: Run, where: str, names: Sequence[str]) -> Diverged:
    """Return the error for weights that are not finite after a host call whose loss was."""
    return Diverged(
        f"the loss is finite at {where}, but {len(names)} tensors of weights are not after it "
        f"({', '.join(map(repr, names[:3]))}{', ...' if len(names) > 3 else ''}): their gradients "
        f"overflowed; {advice(run.config, True)}"
    )
