"""Where the custom backward stays out of the way."""

from __future__ import annotations

import importlib
from typing import Callable, List

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ipu_proxynorm.norm import create_norm_act, may_use_custom_backward, plain_operators


class Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


class Function(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


def uses_custom_backward(module: nn.Module, x: Tensor) -> bool:
    return "_Block" in type(module(x).grad_fn).__name__


def test_ordinary_tensors_use_it() -> None:
    assert may_use_custom_backward(torch.randn(2), nn.Parameter(torch.randn(2)))
    assert uses_custom_backward(create_norm_act("ln+pn", 4), torch.randn(2, 4))


def test_plain_operators_are_nestable_and_end() -> None:
    module, x = create_norm_act("ln+pn", 4), torch.randn(2, 4)
    with plain_operators():
        with plain_operators():
            assert not uses_custom_backward(module, x)
        assert not uses_custom_backward(module, x)
    assert uses_custom_backward(module, x)
    with pytest.raises(ValueError, match="unknown channel grouping"), plain_operators("stride"):
        pass
    assert uses_custom_backward(module, x)


@pytest.mark.parametrize("mode", [Dispatch, Function])
def test_whoever_watches_operators_sees_plain_ones(mode: Callable[[], Dispatch]) -> None:
    module, x = create_norm_act("ln+pn", 4), torch.randn(2, 4)
    with mode():
        assert not uses_custom_backward(module, x)


def test_tensors_that_are_not_ordinary() -> None:
    assert not may_use_custom_backward(torch.randn(2, device="meta"))
    assert not may_use_custom_backward(torch.randn(2).as_subclass(Subclass))
    module = create_norm_act("gn2+pn", 4, "silu", device="meta")
    assert module(torch.randn(2, 4, 3, device="meta")).shape == (2, 4, 3)


def test_traced_graphs_contain_no_python() -> None:
    module, x = create_norm_act("ln+pn", 4, "silu"), torch.randn(2, 4, 5)
    traced = torch.jit.trace(module, x)
    kinds = {node.kind() for node in traced.inlined_graph.nodes()}
    assert not {kind for kind in kinds if "PythonOp" in kind}
    torch.testing.assert_close(traced(x), module(x))


def test_compiled_graphs_are_whole() -> None:
    graphs: List[torch.fx.GraphModule] = []

    def collect(graph: torch.fx.GraphModule, inputs: List[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    module, x = create_norm_act("ln+pn", 4, "silu"), torch.randn(2, 4, 5)
    importlib.import_module("torch._dynamo").reset()
    compiled = torch.compile(module, backend=collect)
    torch.testing.assert_close(compiled(x), module(x))
    if not torch.__version__.startswith("2.0."):  # whose compiler breaks up any such module
        assert len(graphs) == 1


def test_function_transforms() -> None:
    module, x = create_norm_act("gn2+pn", 4, "silu"), torch.randn(3, 4, 5)
    parameters = dict(module.named_parameters())

    def total(parameters: dict, x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,)).square().sum()

    detached = {name: p.detach() for name, p in parameters.items()}
    grads = torch.func.grad(total)(detached, x)
    expected = torch.autograd.grad(total(parameters, x), list(parameters.values()))
    torch.testing.assert_close(list(grads.values()), list(expected), atol=1e-4, rtol=1e-4)
    singles = torch.func.vmap(lambda image: module(image.unsqueeze(0)).squeeze(0))(x)
    torch.testing.assert_close(singles, module(x))


def test_forward_mode() -> None:
    module, x = create_norm_act("gn2+pn", 4).double(), torch.randn(2, 4, 5, dtype=torch.float64)
    tangent = torch.randn_like(x)
    with torch.no_grad():
        step = 1e-6 * tangent
        expected = (module(x + step) - module(x - step)) / 2e-6
    with torch.autograd.forward_ad.dual_level():
        dual = module(torch.autograd.forward_ad.make_dual(x, tangent))
        got = torch.autograd.forward_ad.unpack_dual(dual).tangent
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)
