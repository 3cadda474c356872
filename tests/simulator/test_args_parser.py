"""Arguments are bound to forward's signature, and later calls must match the compiled one."""

from __future__ import annotations

import collections

import pytest
import torch

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


class Add(torch.nn.Module):
    def forward(self, x, y=None, *, scale=1):
        return (x if y is None else x + y) * scale


def compiled(model, *args, **kwargs):
    executor = poptorch.inferenceModel(model)
    executor(*args, **kwargs)
    return executor


def test_arguments_by_position_name_and_default():
    one, two = torch.ones(2), torch.full((2,), 2.0)
    for call in (
        lambda model: model(one, two),
        lambda model: model(y=two, x=one),
        lambda model: model(one, y=two, scale=1),
    ):
        assert call(poptorch.inferenceModel(Add())).tolist() == [3, 3]
    assert compiled(Add(), one)(one).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((torch.ones(2), torch.ones(3)), {}, r"Shape mismatch for y: expected torch.Size\(\[2\]\)"),
        ((torch.ones(2), torch.ones(2).int()), {}, "expected torch.float32 but got torch.int32"),
        ((torch.ones(2), None), {}, "Type mismatch for y"),
        ((torch.ones(2), torch.ones(2)), {"scale": 5}, "mismatch for scale: expected 3 but got 5"),
    ],
)
def test_later_calls_must_match(args, kwargs, message):
    model = compiled(Add(), torch.ones(2), torch.ones(2), scale=3)
    with pytest.raises(poptorch.Error, match=message):
        model(*args, **{"scale": 3, **kwargs})


def test_destroy_lets_other_inputs_in():
    model = compiled(Add(), torch.ones(2))
    model.destroy()
    assert model(torch.ones(3)).shape == (3,)


def test_missing_surplus_and_repeated_arguments():
    with pytest.raises(poptorch.Error, match="Mandatory parameter x missing"):
        poptorch.inferenceModel(Add())(y=torch.ones(1))
    with pytest.raises(AssertionError, match="Too many arguments"):
        poptorch.inferenceModel(Add())(*[torch.ones(1)] * 4)
    with pytest.raises(AssertionError, match="z is not a valid parameter"):
        poptorch.inferenceModel(Add())(torch.ones(1), z=torch.ones(1))
    with pytest.raises(AssertionError, match="passed more than once"):
        poptorch.inferenceModel(Add())(torch.ones(1), x=torch.ones(1))


def test_dictionaries_match_by_key_whatever_their_order():
    model = compiled(lambda d: d["a"] - d["b"], {"a": torch.ones(1), "b": torch.zeros(1)})
    assert model({"b": torch.ones(1), "a": torch.full((1,), 3.0)}).item() == 2
    with pytest.raises(poptorch.Error, match=r"Unexpected arguments: c\. Missing arguments: b\."):
        model({"a": torch.ones(1), "c": torch.ones(1)})


def test_outputs_keep_the_models_structure():
    Pair = collections.namedtuple("Pair", "left right")

    def forward(x):
        return {"b": Pair(x, [x + 1, (x + 2, None)]), "a": "text"}

    result = poptorch.inferenceModel(forward)(torch.zeros(1))
    assert list(result) == ["b", "a"]
    assert isinstance(result["b"], Pair)
    assert result["b"].right[1][1] is None
    assert result["b"].right[1][0].item() == 2
    assert poptorch.inferenceModel(lambda x: None)(torch.zeros(1)) is None


def test_the_users_own_types():
    class Box:
        def __init__(self, tensor):
            self.tensor = tensor

    class Parser(poptorch.ICustomArgParser):
        def yieldTensors(self, struct):
            yield struct.tensor

        def reconstruct(self, original_structure, tensor_iterator):
            return Box(next(tensor_iterator))

    poptorch.registerCustomArgParser(Box, Parser())
    try:
        options = poptorch.Options().deviceIterations(2)
        model = poptorch.inferenceModel(lambda box: Box(box.tensor * 2), options)
        assert model(Box(torch.tensor([1.0, 2.0]))).tensor.tolist() == [2, 4]
    finally:
        poptorch.registerCustomArgParser(Box, None)
    with pytest.raises(poptorch.Error, match="must inherit from ICustomArgParser"):
        poptorch.registerCustomArgParser(Box, object())


ONE, ZERO = torch.ones(1), torch.zeros(1)


def test_a_default_tensor_is_an_input_like_others():
    class Scaled(torch.nn.Module):
        def forward(self, x, factor=ONE, offset=ZERO):
            return x * factor + offset

    model = compiled(Scaled(), torch.ones(1))
    assert model(torch.ones(1), torch.full((1,), 3.0)).item() == 3
    assert model(offset=torch.full((1,), 4.0), x=torch.ones(1)).item() == 5
    assert model(torch.ones(1)).item() == 1


@pytest.mark.parametrize("arguments", [(None, 3.0, 5.0), (3.0, None, 5.0), (3.0, 5.0, None)])
def test_none_anywhere(arguments):
    class Sum(torch.nn.Module):
        def forward(self, a, b, *more):
            return sum(value for value in (a, b, *more) if value is not None)

    tensors = [None if value is None else torch.tensor([value]) for value in arguments]
    model = compiled(Sum(), *tensors)
    assert model(*tensors).item() == 8
    with pytest.raises(poptorch.Error, match=r"Type mismatch for .*None"):
        model(*[torch.ones(1)] * 3)


def test_forward_may_add_tensors_to_the_users_own_types():
    class Bag:
        def __init__(self, **tensors):
            self.tensors = tensors

    class Parser(poptorch.ICustomArgParser):
        def yieldTensors(self, struct):
            yield from struct.tensors.values()

        def reconstruct(self, original_structure, tensor_iterator):
            return Bag(**{name: next(tensor_iterator) for name in original_structure.tensors})

    def forward(bag):
        bag.tensors["double"] = bag.tensors["x"] * 2
        return bag

    poptorch.registerCustomArgParser(Bag, Parser())
    try:
        model = poptorch.inferenceModel(forward)
        for value in (1.0, 3.0):
            result = model(Bag(x=torch.tensor([value])))
            found = {name: tensor.item() for name, tensor in result.tensors.items()}
            assert found == {"x": value, "double": 2 * value}
    finally:
        poptorch.registerCustomArgParser(Bag, None)


def test_a_non_contiguous_input_is_taken():
    x = torch.arange(6.0).reshape(2, 3).t()
    assert torch.equal(poptorch.inferenceModel(lambda x: x * 1)(x), x)


def test_an_empty_input_is_refused():
    with pytest.raises(poptorch.Error, match=r"Zero-sized tensors .*\(Got shape \[0, 2\]\)"):
        poptorch.inferenceModel(lambda x: x + 1)(torch.zeros(0, 2))
