"""The custom backward against the plain operators, which are tested against the definition."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any, List, Tuple

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

from ipu_proxynorm.norm import create_norm_act, plain_operators
from ipu_proxynorm.norm.activations import ACTIVATIONS
from ipu_proxynorm.norm.fused import memory_format
from ipu_proxynorm.norm.modules import ProxyNormAct

LAYOUTS = [
    ((3, 8), torch.contiguous_format),
    ((3, 8, 5), torch.contiguous_format),
    ((3, 8, 5, 4), torch.contiguous_format),
    ((3, 8, 5, 4), torch.channels_last),
    ((2, 8, 2, 3, 4), torch.contiguous_format),
    ((2, 8, 2, 3, 4), torch.channels_last_3d),
]


def layer(act: Any, spec: str = "gn2+pn", **kwargs: Any) -> ProxyNormAct:
    module = create_norm_act(spec, 8, act, **kwargs)
    assert isinstance(module, ProxyNormAct)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.3, std=0.5)
    return module


def outputs(module: ProxyNormAct, x: Tensor, grad: Tensor, plain: bool = False) -> List[Tensor]:
    """Output and gradients of input and parameters."""
    x = x.detach().requires_grad_()
    if plain:
        with plain_operators():
            out = module(x)
    else:
        out = module(x)
        assert "_Block" in type(out.grad_fn).__name__
    return [out, *torch.autograd.grad(out, (x, *module.moment_parameters), grad)]


PARAMETRIZED = [
    nn.Hardtanh(-math.inf, 1.0),
    nn.Hardtanh(-0.5, math.inf),
    nn.Hardtanh(0.5, 1.5),
    nn.LeakyReLU(-0.5),
    nn.LeakyReLU(2.0),
]


@pytest.mark.parametrize("act", [*ACTIVATIONS, *PARAMETRIZED])
def test_equals_the_plain_operators(act: Any) -> None:
    for (shape, layout), recompute in itertools.product(LAYOUTS, (False, True)):
        module = layer(act, recompute=recompute).double()
        x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
        grad = torch.randn(shape, dtype=torch.float64)
        got, expected = outputs(module, x, grad), outputs(module, x, grad, plain=True)
        # PyTorch's own backward of hard-sigmoid has a float32 constant in it.
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_equals_the_plain_operators_at_the_initial_values(act: str) -> None:
    module = layer(act).double()
    module.reset_parameters()
    x, grad = torch.randn(2, 3, 8, 6, 5, dtype=torch.float64).unbind()
    torch.testing.assert_close(
        outputs(module, x, grad), outputs(module, x, grad, plain=True), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_gradients_agree_with_finite_differences(act: str) -> None:
    module = layer(act).double()
    x = torch.randn(2, 8, 2, dtype=torch.float64, requires_grad=True)
    values = [p.detach().clone().requires_grad_() for p in module.moment_parameters]
    names = [name for name, _ in module.named_parameters()]

    def block(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, parameters)), (x,))

    assert torch.autograd.gradcheck(block, (x, *values))


@pytest.mark.parametrize("n", [200, 256])
@pytest.mark.parametrize("act", ["relu", "silu", "relu6"])
def test_sampled_moments_too(act: str, n: int) -> None:
    module = layer(act, method="sampled", n=n).double()
    x, grad = torch.randn(2, 3, 8, 6, dtype=torch.float64).unbind()
    torch.testing.assert_close(
        outputs(module, x, grad), outputs(module, x, grad, plain=True), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("act", ["relu", "relu6", "leaky_relu", "silu", "gelu", "sigmoid"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_activations_with_float32_parameters(
    act: str, layout: torch.memory_format
) -> None:
    module = layer(act)
    nn.init.normal_(module.weight, mean=1.0, std=0.1)
    x, grad = (t.to(memory_format=layout) for t in torch.randn(2, 6, 8, 12, 12).unbind())
    low = outputs(module, x.bfloat16(), grad.bfloat16())
    high = outputs(module.double(), x.bfloat16().double(), grad.bfloat16().double(), plain=True)
    assert low[0].dtype == low[1].dtype == torch.bfloat16
    for got, expected in zip(low, high):
        # Sums of gradients cancel, and at a kink a rounding decides: plain operators do no better.
        assert (got.double() - expected).norm() / expected.norm() < 0.25
    assert (low[0].double() - high[0]).norm() / high[0].norm() < 0.006


def test_relu_in_low_precision_has_the_error_of_one_rounding() -> None:
    module = layer("relu")
    x = torch.randn(4, 8, 9, 9).bfloat16()
    exact = outputs(module.double(), x.double(), x.double(), plain=True)[0]
    got = module.float()(x).double()
    assert ((got - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_float16_activations(act: str) -> None:
    module = layer(act)
    x, grad = torch.randn(2, 4, 8, 12, 12).half().unbind()
    x.requires_grad_()
    out = module(x)
    out.backward(grad)
    expected = outputs(module.double(), x.detach().double(), grad.double(), plain=True)
    assert out.dtype == x.grad.dtype == torch.float16
    assert (out.double() - expected[0]).norm() / expected[0].norm() < 1e-3
    assert (x.grad.double() - expected[1]).norm() / expected[1].norm() < 0.02


def test_half_precision_parameters_get_half_precision_gradients() -> None:
    module = layer("silu").bfloat16()
    out = module(torch.randn(2, 8, 4, 4).bfloat16())
    out.float().square().sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in module.parameters())


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS)
@pytest.mark.parametrize("act", ["relu", "silu", "leaky_relu"])
def test_keeps_the_memory_format(
    act: str, shape: Tuple[int, ...], layout: torch.memory_format
) -> None:
    x = torch.randn(shape).to(memory_format=layout).requires_grad_()
    out = layer(act)(x)
    assert out.is_contiguous(memory_format=layout)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert grad.is_contiguous(memory_format=layout)


def test_takes_inputs_that_are_dense_in_no_format() -> None:
    module = layer("silu")
    x = torch.randn(5, 8, 4, 3).permute(3, 1, 0, 2)
    assert memory_format(x) == torch.contiguous_format
    torch.testing.assert_close(module(x), module(x.contiguous()))
    torch.testing.assert_close(module(x[::2, :, 1:]), module(x[::2, :, 1:].contiguous()))


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_empty_batch(act: str) -> None:
    module = layer(act)
    x = torch.randn(0, 8, 4, 4, requires_grad=True)
    out = module(x)
    out.sum().backward()
    assert out.shape == x.grad.shape == x.shape
    assert all(p.grad is not None and p.grad.eq(0).all() for p in module.parameters())


@pytest.mark.parametrize("act", ["relu", "silu", "relu6", "leaky_relu"])
def test_frozen_inputs_and_parameters(act: str) -> None:
    module = layer(act)
    x = torch.randn(3, 8, 5)
    full = outputs(module, x, torch.ones_like(x))
    module(x).sum().backward()  # the input needs no gradient
    torch.testing.assert_close([p.grad for p in module.parameters()], full[2:])
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    module(x).sum().backward()
    torch.testing.assert_close(x.grad, full[1])
    assert not module(x.detach()).requires_grad


def saved_bytes(run: Any) -> int:
    """Bytes of activations kept for the backward pass, the output included, each storage once."""
    kept = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = run()
    keep(out)
    return sum(kept.values())


@pytest.mark.parametrize(
    ("act", "recompute", "ratio"),
    [("relu", False, 1.01), ("silu", False, 1.01), ("silu", True, 0.70), ("gelu", True, 0.70)],
)
def test_keeps_no_more_than_norm_and_activation_alone(
    act: str, recompute: bool, ratio: float
) -> None:
    x = torch.randn(4, 64, 28, 28, requires_grad=True)
    proxy = create_norm_act("gn4+pn", 64, act, recompute=recompute)
    plain = create_norm_act("gn4", 64, act)
    assert saved_bytes(lambda: proxy(x)) <= ratio * saved_bytes(lambda: plain(x))


def called(module: ProxyNormAct) -> Any:
    """Return a layer as a function of its input and its parameters."""
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        out = torch.func.functional_call(module, dict(zip(names, parameters)), (x,))
        assert "_Block" in type(out.grad_fn).__name__
        return out

    return call


TWICE = ["identity", "relu", "relu6", "leaky_relu", "silu", "gelu", "tanh", "softplus", "mish"]


@pytest.mark.parametrize("method", ["exact", "sampled"])
@pytest.mark.parametrize("act", TWICE)
def test_second_derivatives_agree_with_finite_differences(act: str, method: str) -> None:
    module = layer(act, method=method, n=16).double()
    x = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        called(module), (x, *module.parameters()), fast_mode=True, atol=1e-4
    )


@pytest.mark.parametrize("act", ["relu", "relu6", "leaky_relu", "silu", "gelu"])
def test_many_gradients_at_once(act: str) -> None:
    """As ``jacobian(vectorize=True)`` asks for them."""
    module = layer(act).double()
    x = torch.randn(1, 8, 2, dtype=torch.float64)
    inputs = (x, *(p.detach() for p in module.parameters()))
    one_by_one = jacobian(called(module), inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has operators that it computes one by one
        torch.testing.assert_close(jacobian(called(module), inputs, vectorize=True), one_by_one)


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_a_gradient_penalty_whose_gradient_comes_from_constants(act: str) -> None:
    """What comes into the backward pass needs no gradient; what goes out depends on all."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer(act)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(model.named_parameters())

    def penalty(*values: Tensor) -> Tensor:
        out = torch.func.functional_call(model, dict(zip(parameters, values)), (x,))
        (grad,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return grad.square().sum()

    assert torch.autograd.gradcheck(penalty, tuple(parameters.values()), atol=1e-4)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("act", ["relu", "silu", "gelu", "mish", "leaky_relu"])
def test_a_graph_kept_for_a_second_backward_pass(act: str, recompute: bool) -> None:
    module, x = layer(act, recompute=recompute), torch.randn(3, 8, 5, requires_grad=True)
    out = module(x)
    inputs = (x, *module.moment_parameters)
    first = torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)
    for _ in range(2):
        again = torch.autograd.grad(out, inputs, torch.ones_like(out), retain_graph=True)
        torch.testing.assert_close(again, first)


def test_a_leaky_relu_that_folds_back() -> None:
    module = layer(nn.LeakyReLU(-0.5)).double()
    x, grad = torch.randn(2, 3, 8, 6, dtype=torch.float64).unbind()
    torch.testing.assert_close(outputs(module, x, grad), outputs(module, x, grad, plain=True))
