"""Traces a torch module, forward and backward, on the meta device: no activation is allocated."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory.blocks import Block, blocks_begun, blocks_of, placement
from ipu_proxynorm.memory.graph import Capture
from ipu_proxynorm.memory.operators import torch_operators
from ipu_proxynorm.memory.options import grouping_of
from ipu_proxynorm.memory.recorder import CaptureRecorder, tensors_in
from ipu_proxynorm.norm import plain_operators

_PRIMES = (61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113, 127, 131, 137, 139, 149, 151)

# Operators whose results, or whose sizes, depend on values: no later torch traces them either.
_BY_VALUE = frozenset(
    f"aten::{name}"
    for name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")
)


def capture(
    model: nn.Module,
    inputs: Union[Tensor, Sequence[Tensor]],
    *,
    training: bool = True,
    precision: Optional[str] = None,
    options: Optional[Any] = None,
    splits: Sequence[str] = (),
) -> Capture:
    """Trace ``model`` on ``inputs`` and return its operators and tensors.

    The model is not changed and nothing is computed. Norms run as the plain operators that an IPU
    runs. The trace is made at a micro-batch that is a prime number, so that what scales with the
    micro-batch can be told from what does not; a model that only runs at the given micro-batch is
    traced at that one.

    Where PopART's saved tensors differ from autograd's, which decide here: PopART keeps no mask of
    a dropout (its seed suffices) and no index of a max-pooling (its input and output); neither is
    counted. Both keep a norm's input, a ReLU's output and a convolution's input.

    Args:
        model: any module; in training it returns its loss, or losses and others, or outputs whose
            sum is then taken for the loss.
        inputs: of one micro-batch, the micro-batch first; on any device, values do not matter. A
            tensor alone is the only one.
        training: with a backward pass.
        precision: ``16.16``, ``16.32`` or ``32.32``; None: the model as it is.
        options: ``poptorch.Options`` whose execution strategy numbers the stages of the model's
            blocks; None: each block is a stage, in order.
        splits: layers at which stages begin, instead of blocks.

    Raises:
        UserError: the model cannot be traced, an IPU does not have a type, or a split is no layer.
    """
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not given or not all(isinstance(t, Tensor) and t.dim() > 0 for t in given):
        raise UserError(
            "inputs: expected at least one tensor, each with the micro-batch as first dimension"
        )
    micro_batch = int(given[0].shape[0])
    prime = _free_prime(model, given)
    try:
        traced = _trace(model, _resized(given, prime), prime, training, precision, options)
        traced = traced.with_micro_batch(micro_batch)
    except UserError:
        raise
    except Exception:  # a batch written into the model's code; what else it is shows below
        try:
            traced = _trace(model, given, micro_batch, training, precision, options)
        except UserError:
            raise
        except Exception as error:
            raise UserError(_why_untraced(model, error)) from error
        traced = dataclasses.replace(traced, fixed_batch=True)
    return traced.with_splits(splits) if splits else traced


def _why_untraced(model: nn.Module, error: Exception) -> str:
    """Return why a model could not be traced, in a sentence."""
    name, reason = type(model).__name__, next(iter(str(error).splitlines()), "")
    missing = re.search(r"'(aten::\w+)[^']*' .*'Meta' backend", reason)
    if missing is not None and missing[1] not in _BY_VALUE:
        return (
            f"{name} cannot be traced: torch {torch.__version__} does not know the shapes that "
            f"{missing[1]} makes; a later torch may, or replace the layer that calls it"
        )
    return (
        f"{name} cannot be traced without its values ({type(error).__name__}: {reason}): shapes "
        "and control flow must not depend on values, on an IPU as here"
    )


def _free_prime(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return a prime that divides none of the model's and the inputs' own sizes."""
    sizes = {d for t in inputs for d in t.shape[1:]}
    sizes |= {d for p in model.parameters() for d in p.shape}
    near = {size // 2**k + off for size in sizes for k in range(6) for off in (-1, 0, 1)}
    free = (p for p in _PRIMES if all(size % p for size in near if size > 0))
    return next(free, 157)


def _resized(inputs: Sequence[Tensor], micro_batch: int) -> List[Tensor]:
    first = inputs[0].shape[0]
    return [
        torch.empty(
            (micro_batch, *t.shape[1:]) if t.shape[0] == first else t.shape,
            dtype=t.dtype,
            device="meta",
        )
        for t in inputs
    ]


def _on_meta(model: nn.Module, precision: Optional[str]) -> nn.Module:
    """Return a copy of the model without values, in half precision where activations are."""
    memo: Dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for module in model.modules():
        own = [*module.buffers(recurse=False), *vars(module).values()]
        for tensor in own:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                memo[id(tensor)] = torch.empty_like(tensor, device="meta")
    copied = copy.deepcopy(model, memo)
    if precision in ("16.16", "16.32"):
        copied.half()
    elif precision == "32.32":
        copied.float()
    return copied


def _trace(
    model: nn.Module,
    inputs: Sequence[Tensor],
    micro_batch: int,
    training: bool,
    precision: Optional[str],
    options: Optional[Any],
) -> Capture:
    copied = _on_meta(model, precision)
    copied.train(training)
    half = precision in ("16.16", "16.32")
    given = [t.to("meta") for t in inputs]
    if half:
        given = [t.half() if t.is_floating_point() else t for t in given]
    elif precision == "32.32":
        given = [t.float() if t.is_floating_point() else t for t in given]
    recorder = CaptureRecorder(copied, given, micro_batch, placement(options))
    grouping = grouping_of(options)
    with plain_operators(grouping), torch.device("meta"), torch.set_grad_enabled(training):
        with _half_attention(), torch_operators(), _layers_entered(copied, recorder), blocks_begun(
            recorder
        ), recorder.recording():
            returned = copied(*given)
        outputs = tensors_in(returned)
        gradients: Dict[str, Tensor] = {}
        if training:
            gradients = _backward(copied, outputs, recorder)
    return recorder.result(outputs, gradients, training)


@contextlib.contextmanager
def _half_attention() -> Iterator[None]:
    """Keep attention in its inputs' type, as torch 2.0 does, PopTorch 3.4's.

    Later ones compute float16's plain form in float32 unless told not to.
    """
    cuda: Any = torch.backends.cuda  # torch 2.0's has neither of the two
    if not hasattr(cuda, "allow_fp16_bf16_reduction_math_sdp"):
        yield
        return
    before = cuda.fp16_bf16_reduction_math_sdp_allowed()
    cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        yield
    finally:
        cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _backward(
    model: nn.Module, outputs: Sequence[Tensor], recorder: CaptureRecorder
) -> Dict[str, Tensor]:
    losses = [t for t in outputs if t.requires_grad]
    if not losses:
        raise UserError(
            f"{type(model).__name__} returns nothing that has a gradient: it cannot be trained"
        )
    scalars = [t for t in losses if t.dim() == 0]
    losses = scalars[:1] or losses
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    seeds = [torch.ones_like(loss) for loss in losses]
    recorder.begin_backward(seeds)
    with recorder.recording():
        found = torch.autograd.grad(losses, list(trained.values()), seeds, allow_unused=True)
    return {name: g for name, g in zip(trained, found) if g is not None}


@contextlib.contextmanager
def _layers_entered(model: nn.Module, recorder: CaptureRecorder) -> Iterator[None]:
    """Tell the recorder which module runs."""
    handles = []
    for name, module in model.named_modules():
        if name:
            enter = _entering(recorder, name, blocks_of(module))
            handles.append(module.register_forward_pre_hook(enter, prepend=True))
            handles.append(module.register_forward_hook(lambda *_: recorder.leave()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _entering(recorder: CaptureRecorder, name: str, blocks: List[Block]) -> Callable[..., None]:
    def enter(*_: Any) -> None:
        for block in blocks:
            recorder.begin_block(*block)
        recorder.enter(name)

    return enter
