"""One small program for each operator that our networks compile to, held against the CPU."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.ipu.mixing import Mixing, mix_images
from ipu_proxynorm.models.layers import DropPath
from ipu_proxynorm.norm import create_norm_act, plain_operators

#: Largest difference from the CPU, as a share of the largest value: gradients and outputs.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2}


class Case(NamedTuple):
    """An operator: what it is given, by shape, and what is computed."""

    name: str
    shapes: Tuple[Tuple[int, ...], ...]
    function: Callable[..., Tensor]


class Layer(NamedTuple):
    """A layer of ours, on images of this shape."""

    name: str
    shape: Tuple[int, ...]
    build: Callable[[], nn.Module]


IMAGES = (2, 8, 6, 6)


def _cross_entropy(logits: Tensor) -> Tensor:
    labels = torch.tensor([1, 0, 2, 3]).to(logits.device)
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    return F.nll_loss(log_probabilities, labels, reduction="none") - log_probabilities.mean(dim=1)


def _accuracy(logits: Tensor) -> Tensor:
    labels = torch.tensor([1, 0, 2, 3]).to(logits.device)
    right = (logits.argmax(dim=1) == labels).to(torch.float32)
    return right + 0 * logits.float().sum(dim=1)


def _mixed(images: Tensor) -> Tensor:
    numbers = torch.tensor([[0.75, 1.0, 3.0, 1.0, 4.0], [0.625, 0.0, 2.0, 2.0, 5.0]])
    return mix_images(images, numbers.to(images.device), Mixing(mixup=True, cutmix=True))


def _normed_pixels(x: Tensor) -> Tensor:
    pixels = (100 * x.detach()).to(torch.int32).to(x.dtype)
    return (pixels - 3) / 7 + x


CASES: List[Case] = [
    Case("convolution", (IMAGES, (4, 8, 3, 3)), lambda x, w: F.conv2d(x, w, padding=1)),
    Case("convolution, stride 2", (IMAGES, (4, 8, 3, 3)), lambda x, w: F.conv2d(x, w, stride=2)),
    Case("grouped convolution", (IMAGES, (8, 2, 3, 3)), lambda x, w: F.conv2d(x, w, groups=4)),
    Case("depthwise convolution", (IMAGES, (8, 1, 3, 3)), lambda x, w: F.conv2d(x, w, groups=8)),
    Case("linear", ((4, 8), (5, 8), (5,)), F.linear),
    Case("max pooling", (IMAGES,), lambda x: F.max_pool2d(x, 3, 2, 1)),
    Case("mean over space", (IMAGES,), lambda x: x.mean(dim=(2, 3))),
    Case("sum, stack", ((4, 5),), lambda x: torch.stack([x, 2 * x]).sum(dim=0)),
    Case("relu", (IMAGES,), F.relu),
    Case("silu", (IMAGES,), F.silu),
    Case("sigmoid gate", (IMAGES, (2, 8, 1, 1)), lambda x, g: x * torch.sigmoid(g)),
    Case("exp, erf, abs", ((4, 5),), lambda x: torch.exp(-x.abs()) * torch.erf(x)),
    Case("power, inverse root", ((4, 5),), lambda x: torch.rsqrt(x**2 + 1)),
    Case("quotient, difference", ((4, 5), (4, 5)), lambda x, y: (1 - x) / (2 + y.abs())),
    Case("clamp per channel", (IMAGES, (1, 8, 1, 1)), lambda x, b: torch.where(x < b, b, x)),
    Case("maximum, clamp", ((4, 5), (4, 5)), lambda x, y: torch.maximum(x, y).clamp(min=0.1)),
    Case("parts and joins", ((8, 4),), lambda x: torch.cat(torch.split(x, [3, 5])[::-1])),
    Case("pixels", (IMAGES,), _normed_pixels),
    Case("mixing", (IMAGES,), _mixed),
    Case("cross-entropy", ((4, 5),), _cross_entropy),
    Case("right answers", ((4, 5),), _accuracy),
]


def _norm(spec: str, activation: str = "relu") -> Callable[[], nn.Module]:
    return lambda: create_norm_act(spec, 8, activation, eps=1e-3)


LAYERS: List[Layer] = [
    Layer(f"{spec}, {activation}", IMAGES, _norm(spec, activation))
    for spec, activation in (
        ("bn", "relu"), ("in", "relu"), ("ln", "relu"), ("gn4", "silu"),
        ("gn4+pn", "relu"), ("gn4+pn", "silu"), ("ln+pn", "relu"), ("none", "relu"),
    )
]  # fmt: skip
LAYERS.append(
    Layer(
        "gn4+pn without activation", IMAGES, lambda: create_norm_act("gn4+pn", 8, apply_act=False)
    )
)
LAYERS.append(Layer("stochastic depth of rate 0", IMAGES, lambda: DropPath(0.0)))


class Weighed(nn.Module):
    """A program whose loss is the case's output times numbers that it is given.

    What the case is given are parameters, so that an update of rate 1 shows its gradient.

    Args:
        function: of the parameters, in this type; a module's own are updated, too.
        values: of the parameters.
        kind: the type that the function computes in.
    """

    def __init__(
        self, function: Callable[..., Tensor], values: List[Tensor], kind: torch.dtype
    ) -> None:
        super().__init__()
        self.function, self.kind = function, kind
        self.given = nn.ParameterList([nn.Parameter(value.clone()) for value in values])

    def forward(self, weights: Tensor) -> Tuple[Tensor, Tensor]:
        """Return the output and the loss, 0-d.

        Args:
            weights: float32, of the output's shape.
        """
        with plain_operators():
            output = self.function(*(value.to(self.kind) for value in self.given)).float()
        return output, poptorch.identity_loss((output * weights).sum(), reduction="none")


def programs() -> Iterator[Tuple[str, Callable[[torch.dtype], Weighed]]]:
    """Yield the name of each operator, and what builds its program for a type."""
    for case in CASES:
        yield case.name, lambda kind, case=case: Weighed(case.function, _values(case.shapes), kind)
    for layer in LAYERS:
        yield layer.name, lambda kind, one=layer: Weighed(one.build(), _values((one.shape,)), kind)


def _values(shapes: Tuple[Tuple[int, ...], ...]) -> List[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def run(program: Weighed, weights: Tensor) -> Dict[str, Tensor]:
    """Return output and gradients of a program on the device, by name."""
    optimizer = poptorch.optim.SGD(program.parameters(), lr=1.0)
    before = {name: p.detach().clone() for name, p in program.named_parameters()}
    executor = poptorch.trainingModel(program, optimizer=optimizer)
    output, _ = executor(weights)
    after = {name: p.detach().clone() for name, p in program.named_parameters()}
    executor.destroy()
    return {"output": output, **{name: before[name] - after[name] for name in before}}


def expected(program: Weighed, weights: Tensor) -> Dict[str, Tensor]:
    """Return output and gradients of a program by torch on the CPU, in float32."""
    for parameter in program.given:
        parameter.data = parameter.data.to(program.kind).float()
    kind, program.kind = program.kind, torch.float32
    output, loss = program(weights)
    program.kind = kind
    names, parameters = zip(*program.named_parameters())
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    found = {n: torch.zeros_like(p) for n, p in zip(names, parameters)}
    found.update({n: g for n, g in zip(names, gradients) if g is not None})
    return {"output": output.detach(), **found}


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, as a share of the largest expected value."""
    scale = max(float(theirs.abs().max()), 1e-3)
    return float((ours.float() - theirs).abs().max()) / scale


def compare(build: Callable[[torch.dtype], Weighed], kind: torch.dtype) -> Dict[str, float]:
    """Return how far output and gradients on the device are from the CPU's, by name."""
    with torch.no_grad():  # a CPU may not compute it in float16
        shape = build(torch.float32)(torch.ones(()))[0].shape
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    theirs = expected(build(kind), weights)
    torch.manual_seed(0)
    ours = run(build(kind), weights)
    return {name: difference(ours[name], theirs[name]) for name in theirs}


def failures(say: Callable[[str], None]) -> List[str]:
    """Return what differs, a line each, and say what was found of each operator."""
    found: List[str] = []
    for name, build in programs():
        for kind, tolerance in TOLERANCES.items():
            label = f"{name}, {str(kind)[6:]}"
            try:
                differences = compare(build, kind)
            except Exception as error:  # one operator's refusal says nothing of the next
                found.append(f"{label}: {type(error).__name__}: {error}")
                say(found[-1])
                continue
            worst = max(differences, key=lambda key: differences[key])
            text = f"{label}: {differences[worst]:.1e} ({worst})"
            if not differences[worst] <= tolerance:  # not a number is none
                found.append(f"{text}, expected at most {tolerance:g}")
            say(found[-1] if found and found[-1].startswith(text) else text)
    return found


def executors() -> Iterator[Tuple[str, Any, Tensor]]:
    """Yield each operator's wrapped programs, not compiled, with their input."""
    for name, build in programs():
        with torch.no_grad():
            shape = build(torch.float32)(torch.ones(()))[0].shape
        for kind in TOLERANCES:
            program = build(kind)
            optimizer = poptorch.optim.SGD(program.parameters(), lr=1.0)
            yield name, poptorch.trainingModel(program, optimizer=optimizer), torch.ones(shape)
