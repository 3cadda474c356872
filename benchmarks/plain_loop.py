"""PopTorch's host call as a plain PyTorch loop, in float64: what the simulator is measured against.

Nothing here is the simulator's: it splits the batch, accumulates and reduces gradients and steps
torch's own optimisers as PopTorch's documentation says.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_TYPES = (torch.float16, torch.float32, torch.bfloat16)
_CASTS = (torch.Tensor.half, torch.Tensor.float, torch.Tensor.bfloat16)
_LOSSES = frozenset(
    getattr(F, name)
    for name in dir(F)
    if name.endswith("_loss")
    or name
    in ("binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy", "kl_div")
)


def tensors_in(tree: Any) -> List[torch.Tensor]:
    """Return the tensors of nested results, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    values = list(tree.values()) if isinstance(tree, dict) else tree
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors_in(value)]
    return []


def mapped(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """Return nested arguments with the function's result in each tensor's place."""
    if isinstance(tree, torch.Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: mapped(function, value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)) and not hasattr(tree, "_fields"):
        return type(tree)(mapped(function, value) for value in tree)
    return tree


def of_type(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor of floating-point numbers in a type, any other as it is."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def copied(model: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a model, which shares what cannot be copied: Lightning's trainer."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return copy.deepcopy(model, {id(v): v for v in values if not _can_be_copied(v)})


def _can_be_copied(value: Any) -> bool:
    try:
        copy.deepcopy(value)
    except Exception:  # of whatever kind: each says in its own way that it cannot
        return False
    return True


class InOneType(TorchFunctionMode):
    """Computes in one type whatever types the model names, drops nothing out and notes losses.

    Args:
        dtype: the type.

    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self.losses: List[torch.Tensor] = []

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict] = None
    ) -> Any:
        kwargs = {key: self._of_type(value) for key, value in (kwargs or {}).items()}
        args = [self._of_type(value) for value in args]
        if func in _CASTS:
            return args[0].to(self._dtype)
        if func in (F.dropout, F.dropout2d, torch.dropout):
            return args[0]
        try:
            result = func(*args, **kwargs)
        except RuntimeError:
            args, kwargs = mapped(lambda tensor: of_type(tensor, self._dtype), (args, kwargs))
            if func in (F.cross_entropy, F.nll_loss) and len(args) > 1:
                args[1] = args[1] if args[1].is_floating_point() else args[1].long()  # of 32 bits
            result = func(*args, **kwargs)
        if func in _LOSSES:
            self.losses.append(result)
        return result

    def _of_type(self, value: Any) -> Any:
        return self._dtype if isinstance(value, torch.dtype) and value in _TYPES else value


class Rounding(TorchDispatchMode):
    """Rounds what every operator returns to float16, forward and backward."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Optional[Dict] = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.dtype == torch.float32 and 0 not in tensor.stride():
                tensor.data.copy_(tensor.half())  # whose version stays as autograd knows it
        return result


class PlainLoop:
    """A model, trained in float64 as PopTorch would train it.

    Args:
        model: copied.
        replicas: each with buffers of its own.
        accumulation: micro-batches for each weight update.
        iterations: weight updates for each call.
        mean: average gradients over micro-batches and replicas rather than add them up.
        dtype: computes in it.
        halved: round every result to float16, and weights of float16 after each update, with the
            optimiser's loss scaling; ``dtype`` is float32.

    """

    def __init__(
        self,
        model: torch.nn.Module,
        replicas: int = 1,
        accumulation: int = 1,
        iterations: int = 1,
        mean: bool = True,
        dtype: torch.dtype = torch.float64,
        halved: bool = False,
    ) -> None:
        self._halved = halved
        self._half_names = [n for n, p in model.named_parameters() if p.dtype == torch.float16]
        self._loss_scaling = 1.0
        self.model = copied(model).to(dtype)
        self._dtype = dtype
        self._replicas, self._accumulation, self._iterations = replicas, accumulation, iterations
        self._scale = 1 / (replicas * accumulation) if mean else 1.0
        self._buffers: List[Dict[str, torch.Tensor]] = []
        self._optimizer: Optional[torch.optim.Optimizer] = None
        #: Whether a tensor of the results is the loss, after a call.
        self.is_loss: List[bool] = []

    def load(self, model: torch.nn.Module) -> None:
        """Take over another model's weights and buffers."""
        self.model.load_state_dict(model.state_dict())
        self._buffers = []

    def set_optimizer(self, optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> None:
        """Take over an optimiser's kind and values; what the steps have left stays.

        Args:
            optimizer: torch's or PopTorch's, of ``model``'s parameters.
            model: a model whose parameters have the same names as this one's.

        Raises:
            ValueError: there is no plain form of its kind.

        """
        if self._halved:
            self._loss_scaling = float(getattr(optimizer, "loss_scaling", None) or 1.0)
        own = dict(self.model.named_parameters())
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [
            {**group, "params": [own[names[id(p)]] for p in group["params"] if id(p) in names]}
            for group in optimizer.param_groups
        ]
        defaults = getattr(optimizer, "defaults", {})
        if self._optimizer is None:
            self._optimizer = plain_optimizer(type(optimizer).__name__, groups, defaults)
        for own_group, group in zip(self._optimizer.param_groups, groups):
            own_group.update({k: v for k, v in group.items() if k != "params" and k in own_group})

    def __call__(self, args: Sequence[Any], kwargs: Dict[str, Any]) -> List[List[torch.Tensor]]:
        """Train on a combined batch and return each micro-batch's results, in the batch's order."""
        results = []
        parts = self._iterations * self._accumulation * self._replicas
        batches = _split((args, kwargs), parts, self._dtype)
        for _ in range(self._iterations):
            self.model.zero_grad()
            for batch in itertools.islice(batches, self._accumulation * self._replicas):
                results.append(self._micro_batch(len(results) % self._replicas, *batch))
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad *= self._scale / self._loss_scaling
            if self._optimizer is not None:
                self._optimizer.step()
            if self._halved:
                self._round_weights()
        self._swap_buffers(0)
        return results

    @torch.no_grad()
    def _round_weights(self) -> None:
        own = dict(self.model.named_parameters())
        for name in self._half_names:
            own[name].copy_(own[name].half())

    def _swap_buffers(self, replica: int) -> None:
        if not self._buffers:
            own = {name: tensor.clone() for name, tensor in self.model.named_buffers()}
            self._buffers = [dict(own) for _ in range(self._replicas)]
        with torch.no_grad():
            for name, tensor in self.model.named_buffers():
                tensor.copy_(self._buffers[replica][name])

    def _micro_batch(self, replica: int, args: Any, kwargs: Any) -> List[torch.Tensor]:
        self._swap_buffers(replica)
        default = torch.get_default_dtype()
        torch.set_default_dtype(self._dtype)
        try:
            with Rounding() if self._halved else contextlib.nullcontext():
                with InOneType(self._dtype) as mode, noting_identity_losses(mode.losses):
                    result = self.model(*args, **kwargs)
                mode.losses[-1].backward(torch.full_like(mode.losses[-1], self._loss_scaling))
        finally:
            torch.set_default_dtype(default)
        outputs = tensors_in(result)
        loss = mode.losses[-1]
        self.is_loss = [output is loss for output in outputs]
        for buffer in self.model.buffers():  # what a model keeps has no past on the device
            buffer.detach_()
        self._buffers[replica] = {n: t.clone() for n, t in self.model.named_buffers()}
        return [output.detach() for output in outputs]


class noting_identity_losses:
    """Notes what ``poptorch.identity_loss`` returns, and lets it reduce as it says.

    Args:
        losses: where the losses go.

    """

    def __init__(self, losses: List[torch.Tensor]) -> None:
        import poptorch

        self._module, self._losses = poptorch, losses
        self._before = poptorch.identity_loss

    def __enter__(self) -> noting_identity_losses:
        """Replace the function."""

        def identity_loss(x: torch.Tensor, reduction: str) -> torch.Tensor:
            loss = {"sum": x.sum, "mean": x.mean, "none": x.clone}.get(reduction, x.clone)()
            self._losses.append(loss)
            return loss

        self._module.identity_loss = identity_loss
        return self

    def __exit__(self, *error: Any) -> None:
        """Put PopTorch's back."""
        self._module.identity_loss = self._before


def _split(tree: Any, parts: int, dtype: torch.dtype) -> Iterator[Any]:
    """Yield equal parts of every tensor along dimension 0, of a type; a number is not split."""

    def part(tensor: torch.Tensor, at: int) -> torch.Tensor:
        whole = tensor.detach().clone()
        return of_type(whole if whole.dim() == 0 else whole.chunk(parts)[at], dtype)

    for at in range(parts):
        yield mapped(lambda tensor: part(tensor, at), tree)  # noqa: B023


class Lamb(torch.optim.Optimizer):
    """LAMB: Adam's step, with the norm of the weights over its own."""

    def __init__(self, groups: Any, bias_correction: bool = True, **defaults: Any) -> None:
        super().__init__(groups, {"max_weight_norm": None, **defaults})
        self._corrected = bias_correction

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update the weights."""
        for group in self.param_groups:
            (b1, b2), limit = group["betas"], group["max_weight_norm"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(t=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["t"] += 1
                state["m"].lerp_(p.grad, 1 - b1)
                state["v"].lerp_(p.grad**2, 1 - b2)
                m, v = state["m"], state["v"]
                if self._corrected:
                    m, v = m / (1 - b1 ** state["t"]), v / (1 - b2 ** state["t"])
                update = m / (v.sqrt() + group["eps"]) + group["weight_decay"] * p
                weight = p.norm().clamp(max=65500.0 if limit is None else limit)
                ratio = weight / update.norm()
                p -= group["lr"] * (ratio if weight > 0 and update.norm() > 0 else 1.0) * update


def plain_optimizer(
    name: str, groups: List[Dict[str, Any]], defaults: Dict[str, Any]
) -> torch.optim.Optimizer:
    """Return torch's optimiser of a kind.

    Args:
        name: the class's.
        groups: parameters and values.
        defaults: the optimiser's.

    Raises:
        ValueError: there is none here.

    """
    keys = {
        "SGD": ("lr", "momentum", "dampening", "weight_decay", "nesterov"),
        "Adam": ("lr", "betas", "eps", "weight_decay"),
        "AdamW": ("lr", "betas", "eps", "weight_decay"),
        "RMSprop": ("lr", "alpha", "eps", "weight_decay", "momentum", "centered"),
        "LAMB": ("lr", "betas", "eps", "weight_decay", "max_weight_norm"),
    }
    if name not in keys:
        raise ValueError(f"{name}: the plain loop has {', '.join(keys)}.")
    kind = Lamb if name == "LAMB" else getattr(torch.optim, name)
    more = {} if name != "LAMB" else {"bias_correction": defaults.get("bias_correction", True)}
    kept = [{k: g[k] for k in ("params", *keys[name]) if k in g} for g in groups]
    first = {k: v for k, v in kept[0].items() if k != "params"}
    optimizer = kind(kept, **first, **more)
    if name == "SGD":  # PopART's velocity starts at 0, torch's with the first gradient
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def collated(results: Sequence[Sequence[torch.Tensor]], layout: Any) -> List[torch.Tensor]:
    """Return what the host gets of the micro-batches' results.

    Args:
        results: the results of every micro-batch, in the batch's order.
        layout: ``(mode, period, iterations, accumulation, replicas)``.

    """
    mode, period, iterations, accumulation, replicas = layout
    grid = [
        (iteration, step, replica)
        for iteration in range(iterations)
        for step in range(accumulation)
        for replica in range(replicas)
    ]
    last = (iterations - 1, accumulation - 1)
    if mode == "Sum":
        kept = []
        for replica in range(replicas):
            own = [values for place, values in zip(grid, results) if place[2] == replica]
            kept.append([torch.stack(list(each)).sum(0) for each in zip(*own)])
    elif mode == "Final":
        kept = [list(v) for place, v in zip(grid, results) if place[:2] == last]
    elif mode == "EveryN":
        kept = [list(v) for place, v in zip(grid, results) if (place[0] + 1) % period == 0]
    else:
        kept = [list(v) for v in results]
    if len(kept) <= 1:
        return kept[0] if kept else []
    return [torch.stack(t) if t[0].dim() == 0 else torch.cat(t) for t in map(list, zip(*kept))]
