"""torch_scatter's operators: an index of 32 bits, as on the device, and results of the package's.

The package itself is not needed: only its operators' names and arguments are.
"""

from __future__ import annotations

import pytest
import torch

import ipu_proxynorm.simulator as poptorch

pytestmark = pytest.mark.simulator

ARGUMENTS = "(Tensor src, Tensor index, int dim, Tensor? out, int? dim_size)"


@pytest.fixture(scope="module", autouse=True)
def package():
    """The package's operators as it declares them, which read 64-bit indices."""
    if hasattr(torch.ops.torch_scatter, "scatter_max"):
        yield  # it is installed
        return
    library = torch.library.Library("torch_scatter", "DEF")
    for name, result in (
        ("max", "(Tensor, Tensor)"),
        ("min", "(Tensor, Tensor)"),
        ("mul", "Tensor"),
    ):
        library.define(f"scatter_{name}{ARGUMENTS} -> {result}")
    yield
    del library


def reference(name, src, index, dim, out, size):
    """What the package computes, element by element, along the last dimension of 2."""
    assert dim == 1
    start = {"max": -torch.inf, "min": torch.inf, "mul": 1.0}[name]
    rows, count = src.shape
    result = torch.full((rows, size), start) if out is None else out.clone()
    places = torch.full((rows, size), count)
    for row in range(rows):
        for column in range(count):
            at = int(index[row, column])
            value, now = src[row, column], result[row, at]
            if name == "mul":
                result[row, at] = now * value
            elif (value > now) if name == "max" else (value < now):
                result[row, at], places[row, at] = value, column
    if out is None and name != "mul":
        result[places == count] = 0
    return result if name == "mul" else (result, places)


class Scatter(torch.nn.Module):
    def __init__(self, name, dim=1, size=None):
        super().__init__()
        self.name, self.dim, self.size = name, dim, size

    def forward(self, src, index, out=None):
        function = getattr(torch.ops.torch_scatter, f"scatter_{self.name}")
        return function(src, index, self.dim, out, self.size)


SRC = torch.tensor([[1.0, 5.0, -2.0, 5.0, 3.0], [0.5, -4.0, 2.0, 7.0, -1.0]])
INDEX = torch.tensor([[0, 2, 2, 2, 4], [3, 3, 0, 0, 0]])


@pytest.mark.parametrize("name", ["max", "min", "mul"])
def test_results_and_their_places(name):
    found = poptorch.inferenceModel(Scatter(name, size=6))(SRC, INDEX)
    expected = reference(name, SRC, INDEX, 1, None, 6)
    if name == "mul":
        assert torch.equal(found, expected)
    else:
        assert torch.equal(found[0], expected[0])
        assert found[1].dtype == torch.int32
        assert torch.equal(found[1].long(), expected[1])


@pytest.mark.parametrize("name", ["max", "min", "mul"])
def test_a_tensor_given_for_the_result_is_written(name):
    given = torch.tensor([[2.0, 9.0, 4.0, 0.0, 3.5], [1.5, 1.0, 1.0, -9.0, 8.0]])
    expected = reference(name, SRC, INDEX, 1, given, 5)
    out = given.clone()
    found = poptorch.inferenceModel(Scatter(name))(SRC, INDEX, out)
    value = expected if name == "mul" else expected[0]
    assert torch.equal(found if name == "mul" else found[0], value)
    assert torch.equal(out, value)


@pytest.mark.parametrize("dim", [0, -2])
def test_an_index_of_one_dimension_is_along_that_dimension(dim):
    index = torch.tensor([2, 0, 2, 1, 0])
    found, places = poptorch.inferenceModel(Scatter("max", dim, 4))(SRC.t().contiguous(), index)
    value, place = reference("max", SRC, index.expand(2, 5), 1, None, 4)
    assert torch.equal(found, value.t())
    assert torch.equal(places.long(), place.t())


def test_a_size_that_only_values_tell_is_refused():
    with pytest.raises(poptorch.Error, match=r"dim_size must be specified .*test_torch_scatter"):
        poptorch.inferenceModel(Scatter("max"))(SRC, INDEX)
