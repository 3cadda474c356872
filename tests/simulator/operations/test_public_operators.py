"""Custom operators of Graphcore's public programs: values and gradients, in float32 and float16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


def custom_op(inputs, name, example, **attributes):
    return poptorch.custom_op(inputs, name, "ai.graphcore", 1, [example], attributes)[0]


def value_and_gradients(function, *inputs):
    """Return what a program gives of its parameters, and what the sum of it gives them back."""

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs = torch.nn.ParameterList([torch.nn.Parameter(x.clone()) for x in inputs])

        def forward(self):
            y = function(*self.inputs)
            weights = torch.arange(1, y.numel() + 1, device=y.device).view(y.shape).to(y.dtype)
            return y, poptorch.identity_loss((y * weights).sum(), "none")

    model = Model()
    executor = poptorch.trainingModel(model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
    value = executor()[0]
    return value, [x - p.detach() for x, p in zip(inputs, model.inputs)]


@pytest.mark.parametrize("name", ["RemapCE", "CopyTensor"])
def test_what_only_maps_to_tiles_is_a_copy(name):
    x = torch.tensor([1.0, -2.0])
    value, (gradient,) = value_and_gradients(lambda x: custom_op([x], name, x, grain_size=8), x)
    assert torch.equal(value, x)
    assert gradient.tolist() == [1, 2]


def test_autograd_proxy_has_one_value_and_the_gradient_of_another():
    x = torch.tensor([5.7, -0.2])
    value, (gradient,) = value_and_gradients(
        lambda x: custom_op([torch.round(x), 3 * x], "AutogradProxy", x), x
    )
    assert value.tolist() == [6, 0]
    torch.testing.assert_close(gradient, torch.tensor([3.0, 6.0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("order", [1, 2])
def test_distances(order, dtype):
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(3, 5, generator=generator).to(dtype)
    second = torch.randn(4, 5, generator=generator).to(dtype)
    second[1] = first[2]  # a distance of 0 has a gradient of 0
    value, gradients = value_and_gradients(
        lambda a, b: custom_op([a, b], f"L{order}Distance", a.new_zeros(3, 4), root_path=""),
        first,
        second,
    )
    a, b = (x.double().requires_grad_() for x in (first, second))
    expected = torch.cdist(a, b, p=order)
    (expected * torch.arange(1, 13).view(3, 4)).sum().backward()
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 5e-3, "atol": 0.1}
    torch.testing.assert_close(value.double(), expected.detach(), **close)
    assert value[2, 1] == 0
    for found, x in zip(gradients, (a, b)):
        torch.testing.assert_close(found.double(), x.grad, **close)


@pytest.mark.parametrize("mode", ["sparse_dense", "dense_sparse"])
def test_static_sparse_products(mode):
    matrix = torch.zeros(4, 6)
    matrix[2:4, 0:2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    matrix[0:2, 4:6] = 5
    dense = torch.arange(12.0).view(6, 2) if mode == "sparse_dense" else torch.ones(3, 4)
    expected = matrix @ dense if mode == "sparse_dense" else dense @ matrix
    value, (gradient,) = value_and_gradients(
        lambda x: (
            custom_op(
                [x],
                "StaticSparseMatmul",
                x.new_zeros(expected.shape),
                mode=mode,
                n_rows=4,
                n_cols=6,
                block_size=2,
                rows=[2, 0],
                cols=[0, 4],
                values=[1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 5.0, 5.0],
            )
            + 0 * x.sum()
        ),
        dense,
    )
    assert torch.equal(value, expected)
    assert not gradient.any()


def test_flash_attention_is_causal_and_does_not_scale():
    qkv = torch.randn(3, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    value, (gradient,) = value_and_gradients(
        lambda x: custom_op([x], "FlashAttentionQKVPacked", x[0], num_chunks_q=2, num_chunks_kv=2),
        qkv,
    )
    reference = qkv.double().requires_grad_()
    query = reference[0] * 8**0.5  # which torch's function divides by
    expected = F.scaled_dot_product_attention(query, reference[1], reference[2], is_causal=True)
    (expected * torch.arange(1, 65).view(2, 4, 8)).sum().backward()
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), reference.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reduction", ["Sum", "Mean", "NoReduction"])
def test_popart_s_ctc_loss(reduction):
    logits = torch.randn(6, 2, 5, generator=torch.Generator().manual_seed(0))
    targets, lengths = torch.tensor([[1, 2, 3], [4, 4, 1]]), torch.tensor([6, 6])
    shape = (2,) if reduction == "NoReduction" else ()

    def loss(x):
        examples = [x.new_zeros(shape), x]
        sizes = [torch.tensor(t, dtype=torch.int32).to(x.device) for t in ([6, 6], [3, 2])]
        classes = targets.int().to(x.device)
        attributes = {"reduction": reduction, "blank": 0, "outDataType": "UNDEFINED"}
        arguments = (x.log_softmax(-1), classes, *sizes)
        return poptorch.custom_op(arguments, "Ctc", "ai.graphcore", 1, examples, attributes)[0]

    value, (gradient,) = value_and_gradients(loss, logits)
    reference = logits.double().requires_grad_()
    names = {"Sum": "sum", "Mean": "mean", "NoReduction": "none"}
    expected = F.ctc_loss(
        reference.log_softmax(-1), targets, lengths, torch.tensor([3, 2]), 0, names[reduction]
    )
    weights = torch.arange(1, expected.numel() + 1).view(expected.shape)
    (expected * weights).sum().backward()
    torch.testing.assert_close(value.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), reference.grad, rtol=1e-4, atol=1e-5)


def simulated_quant(x, exponent_bits=2, mantissa_bits=1, rounding="nearest", fwd=1, bwd="quantise"):
    return custom_op(
        [x],
        "SimulatedQuant",
        x,
        root_path="",
        exponent_bits=exponent_bits,
        mantissa_bits=mantissa_bits,
        rounding=rounding,
        fwd=fwd,
        bwd=bwd,
    )


def test_quantised_values_and_gradients():
    """The 4-bit type has 0, 0.25, 0.5, 0.75, 1, 1.5, 2 and 3, and their negatives."""
    x = torch.tensor([0.3, -0.9, 2.6, 7.0])
    value, (gradient,) = value_and_gradients(simulated_quant, x)
    assert value.tolist() == [0.25, -1, 3, 3]
    assert gradient.tolist() == [1, 2, 3, 3]
    value, (gradient,) = value_and_gradients(lambda x: simulated_quant(x, bwd="ste"), x)
    assert gradient.tolist() == [1, 2, 3, 4]
    value, (gradient,) = value_and_gradients(lambda x: simulated_quant(x, fwd=0), x)
    assert torch.equal(value, x)
    assert gradient.tolist() == [1, 2, 3, 3]
    value, (gradient,) = value_and_gradients(lambda x: simulated_quant(x, bwd="stop") + 0 * x, x)
    assert not gradient.any()


def test_stochastic_quantising_has_the_right_mean_and_differs_from_call_to_call():
    executor = poptorch.inferenceModel(lambda x: simulated_quant(x, rounding="stochastic"))
    x = torch.full((4000,), 1.35)
    value = executor(x)
    assert set(value.tolist()) == {1.0, 1.5}
    assert abs(value.mean().item() - 1.35) < 0.03
    assert not torch.equal(value, executor(x))
