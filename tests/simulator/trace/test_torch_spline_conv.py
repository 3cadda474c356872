"""torch_spline_conv's operators: called by TorchScript, made of others, in inference alone."""

from __future__ import annotations

import itertools

import pytest
import torch

from ipu_proxynorm import simulator as poptorch

_SCHEMAS = {
    "spline_basis": "(Tensor pseudo, Tensor size, Tensor open, int degree) -> (Tensor, Tensor)",
    "spline_weighting": "(Tensor x, Tensor weight, Tensor basis, Tensor index) -> Tensor",
}


@pytest.fixture(scope="module", autouse=True)
def _package():
    """Register the operators as the package does: made of others, which want 64-bit integers."""
    if hasattr(torch.ops.torch_spline_conv, "spline_basis"):
        yield
        return
    library = torch.library.Library("torch_spline_conv", "DEF")
    for name, schema in _SCHEMAS.items():
        library.define(name + schema)
        library.impl(name, _refuses, "CompositeImplicitAutograd")
    yield
    del library


def _refuses(*args):
    raise RuntimeError("the package's own")


def scripted(name):
    """Return a scripted function that calls the operator."""
    if name == "spline_basis":

        @torch.jit.script
        def basis(pseudo: torch.Tensor, size: torch.Tensor, is_open: torch.Tensor, degree: int):
            return torch.ops.torch_spline_conv.spline_basis(pseudo, size, is_open, degree)

        return basis

    @torch.jit.script
    def weighting(
        x: torch.Tensor, weight: torch.Tensor, basis: torch.Tensor, index: torch.Tensor
    ) -> torch.Tensor:
        return torch.ops.torch_spline_conv.spline_weighting(x, weight, basis, index)

    return weighting


def hat(x, degree):
    """Return the cardinal B-spline of a degree at x by the Cox-de Boor recursion."""
    if degree == 0:
        return 1.0 if 0 <= x < 1 else 0.0
    left, right = hat(x, degree - 1), hat(x - 1, degree - 1)
    return (x * left + (degree + 1 - x) * right) / degree


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_the_basis(degree):
    sizes, is_open = [4, 5], [1, 0]
    pseudo = torch.rand(6, 2)
    call = scripted("spline_basis")
    executor = poptorch.inferenceModel(lambda *given: call(*given, degree))
    basis, index = executor(pseudo, torch.tensor(sizes), torch.tensor(is_open, dtype=torch.uint8))
    for edge in range(6):
        expected = {}
        for digits in itertools.product(range(degree + 1), repeat=2):
            value, weight, stride = 1.0, 0, 1
            for dim, digit in enumerate(digits):
                place = pseudo[edge, dim].item() * (sizes[dim] - degree * is_open[dim])
                whole = int(place)
                value *= hat(place - whole + degree - digit, degree)
                weight += stride * ((whole + digit) % sizes[dim])
                stride *= sizes[dim]
            expected[weight] = expected.get(weight, 0) + value
        found = {}
        for weight, value in zip(index[edge].tolist(), basis[edge].tolist()):
            found[weight] = found.get(weight, 0) + value
        assert found == pytest.approx(expected, abs=1e-6)
        assert sum(found.values()) == pytest.approx(1)
    assert index.dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_weighting(dtype):
    x, weight = torch.rand(6, 4, dtype=dtype), torch.rand(10, 4, 3, dtype=dtype)
    basis, index = torch.rand(6, 8, dtype=dtype), torch.randint(0, 10, (6, 8))
    call = scripted("spline_weighting")
    found = poptorch.inferenceModel(lambda *given: call(*given))(x, weight, basis, index)
    expected = torch.einsum("ei,esio,es->eo", x.double(), weight.double()[index], basis.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(10, 4, 3))
        self.call = scripted("spline_weighting")

    def forward(self, x, basis, index):
        return poptorch.identity_loss(self.call(x, self.weight, basis, index), "sum")


def test_there_is_no_gradient():
    with pytest.raises(poptorch.Error, match=r"spline_weighting has no gradient.*inference"):
        poptorch.trainingModel(Layer())(
            torch.rand(6, 4), torch.rand(6, 8), torch.randint(0, 10, (6, 8))
        )


def test_outside_the_package_is_left_alone():
    poptorch.inferenceModel(Layer()).compile(
        torch.rand(6, 4), torch.rand(6, 8), torch.randint(0, 10, (6, 8))
    )
    if torch.ops.torch_spline_conv.spline_weighting.default._schema.arguments[0].name == "x":
        with pytest.raises(RuntimeError, match="the package's own"):
            torch.ops.torch_spline_conv.spline_weighting(*[torch.ones(1)] * 4)
