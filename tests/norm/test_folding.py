from __future__ import annotations

import io
import math
import warnings
from typing import Any, Dict

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import (
    Linear,
    create_conv,
    create_norm_act,
    fold_proxy_norm,
    share_moments,
)
from ipu_proxynorm.norm.activations import ACTIVATIONS

UNITS = ("ipu_proxynorm.norm.modules", "ipu_proxynorm.norm.units")


def network(act: Any, spec: str = "gn2+pn", **kwargs: Any) -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        create_norm_act(spec, 8, act, **kwargs),
        nn.Sequential(nn.Conv2d(8, 6, 3), create_norm_act(spec, 6, act, **kwargs)),
        create_norm_act(spec, 6, apply_act=False, **kwargs),
    )
    for module in model.modules():
        if hasattr(module, "num_groups"):
            for parameter in module.parameters():
                nn.init.normal_(parameter, mean=0.3, std=0.5)
    return model


def assert_within_1e_6(actual: Tensor, expected: Tensor) -> None:
    """Of the largest output: single ones carry the rounding of the sums they are made of."""
    assert (actual - expected).abs().max() <= 1e-6 * expected.abs().max()


def image() -> Tensor:
    return torch.randn(2, 3, 7, 6)


@pytest.mark.parametrize(
    "act",
    [
        *ACTIVATIONS,
        nn.LeakyReLU(0.2),
        nn.Hardtanh(-2, 3),
        nn.Hardtanh(-2, math.inf),
        nn.Hardtanh(-math.inf, 1),
        torch.sin,
    ],
)
def test_equals_the_network_without_any_proxy(act: Any) -> None:
    for spec in ("gn2+pn", "ln+pn", "gn2"):
        model, x = network(act, spec).double(), image().double()
        folded = fold_proxy_norm(model)
        torch.testing.assert_close(folded(x), model(x), rtol=1e-7, atol=1e-7)
        assert not [name for name, _ in folded.named_parameters() if "proxy" in name]
        assert any(type(m).__module__ in UNITS for m in model.modules())
        assert not any(type(m).__module__ in UNITS for m in folded.modules())


def gelu(x: Tensor) -> Tensor:
    """Somebody's own, of a name that torch has for another."""
    return 1.5 * x * torch.sigmoid(x)


def test_somebodys_own_function_is_not_torchs_of_that_name() -> None:
    model, x = network(gelu).double(), image().double()
    torch.testing.assert_close(fold_proxy_norm(model)(x), model(x), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("act", ["relu", "silu"])
def test_float32_within_1e_6(act: str) -> None:
    model, x = network(act), image()
    assert_within_1e_6(fold_proxy_norm(model)(x), model(x))


def test_strided_groups() -> None:
    model, x = network("silu", channel_grouping="strided").double(), image().double()
    folded = fold_proxy_norm(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-7, atol=1e-7)
    assert not torch.allclose(folded(x), fold_proxy_norm(network("silu")).double()(x))


def test_the_model_itself_is_left_alone() -> None:
    model = network("relu").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    fold_proxy_norm(model)
    assert model.training
    torch.testing.assert_close(dict(model.state_dict()), before)


class Tied(nn.Module):
    """One unit under two names, in two modules, and twice in one; what is last is another."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.two = network("silu")[1]
        self.inner = nn.Sequential(self.one, nn.Sequential(self.one, self.one))
        self.last = network("silu")[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self.two(self.one(x))))


def test_one_layer_in_several_places_is_folded_in_all_and_stays_one() -> None:
    model, x = Tied().double(), torch.randn(2, 8, 5, 4).double()
    folded = fold_proxy_norm(model)
    assert not any(type(m).__module__ in UNITS for m in folded.modules())
    torch.testing.assert_close(folded(x), model(x), rtol=1e-7, atol=1e-7)
    assert folded.one is folded.two is folded.inner[0] is folded.inner[1][1]
    assert folded.last is not folded.one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation
        torch.testing.assert_close(torch.jit.script(folded)(x), folded(x))


@pytest.mark.parametrize(
    "act", ["relu", "relu6", "leaky_relu", nn.LeakyReLU(-0.5), nn.ELU(), "silu", "gelu_tanh"]
)
@pytest.mark.parametrize("grouping", ["contiguous", "strided"])
def test_torchscript(act: Any, grouping: str) -> None:
    model, x = network(act, channel_grouping=grouping), image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation, and of shapes checked while tracing
        scripted = torch.jit.script(fold_proxy_norm(model))
        traced = torch.jit.trace(fold_proxy_norm(model), x)
    for graph in (scripted, traced):
        assert_within_1e_6(graph(x), model(x))
        text = str(graph.inlined_graph)
        assert "erfc" not in text
        assert "aten::exp(" not in text


class Ours(nn.Module):
    """Convolutions and a linear layer of this package around units."""

    def __init__(self, spec: str, **options: Any) -> None:
        super().__init__()
        self.one = create_conv(spec, 3, 8, 3, stride=(2, 1), padding=1, **options)
        self.norm = create_norm_act(spec, 8, "silu")
        self.two = create_conv("gn2", 8, 6, 3, bias=False)
        self.last = create_norm_act("bn", 6)
        self.fc = Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.two(self.norm(self.one(x)))).mean((2, 3)))


@pytest.mark.parametrize("options", [{}, {"same": True}, {"padding_mode": "circular"}])
@pytest.mark.parametrize("spec", ["gn2+pn", "gn2+ws+pn"])
def test_layers_of_ours_become_torchs(spec: str, options: Dict[str, Any]) -> None:
    model = Ours(spec, **options).eval()
    share_moments(model)
    with pytest.raises(UserError, match=r"does not take (WS)?Conv2d"):
        torch.jit.script(nn.Sequential(model.one))
    state = torch.get_rng_state()
    folded = fold_proxy_norm(model)
    assert torch.equal(torch.get_rng_state(), state)
    for module in folded.modules():
        assert type(module).__module__ not in (*UNITS, "ipu_proxynorm.norm.conv")
        assert not module._forward_pre_hooks
        assert not module._forward_hooks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation, and of shapes checked while tracing
        graphs = torch.jit.script(folded), torch.jit.trace(folded, image())
    for size in ((7, 6), (12, 9)):
        x = torch.randn(2, 3, *size)
        assert_within_1e_6(folded(x), model(x))
        assert_within_1e_6(graphs[0](x), model(x))
    x = image()
    assert_within_1e_6(graphs[1](x), folded(x))
    assert len(model._forward_pre_hooks) == 1  # the network's own sharing goes on


@pytest.mark.parametrize("name", ["resnet8", "resnetv2_8", "efficientnet_b0"])
def test_our_networks_are_traced_not_scripted(name: str) -> None:
    model, x = create_model(name, shallow=True).eval(), torch.randn(1, 3, 32, 32)
    share_moments(model)
    folded = fold_proxy_norm(model)
    with pytest.raises(UserError, match=r"use torch.jit.trace, of .*fold_proxy_norm"):
        torch.jit.script(folded)
    assert_within_1e_6(torch.jit.trace(folded, x)(x), folded(x))


def exported(model: nn.Module, x: Tensor) -> onnx.ModelProto:
    buffer = io.BytesIO()
    # The exporter that needs nothing but torch; later versions have another by default.
    legacy: Dict[str, Any] = {} if torch.__version__.startswith("2.0.") else {"dynamo": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (x,), buffer, opset_version=17, **legacy)
    return onnx.load_from_string(buffer.getvalue())


@pytest.mark.parametrize("act", ["relu", "relu6", "leaky_relu", "hardswish", "silu", "gelu"])
def test_onnx(act: str) -> None:
    model, x = network(act), image()
    graph = exported(fold_proxy_norm(model), x)
    onnx.checker.check_model(graph)
    kinds = {node.op_type for node in graph.graph.node}
    assert not kinds & {"Exp", "ReduceMean", "ReduceSum"}
    assert not any("proxy" in tensor.name for tensor in graph.graph.initializer)
    (out,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
    assert_within_1e_6(torch.from_numpy(out), model(x))


@pytest.mark.parametrize("act", ["relu", "relu6", "leaky_relu", "hardswish", "silu", "hardsigmoid"])
def test_onnx_of_an_unfolded_network(act: str) -> None:
    model, x = network(act).eval(), image()
    graph = exported(model, x)
    (out,) = ReferenceEvaluator(graph).run(None, {graph.graph.input[0].name: x.numpy()})
    difference = (torch.from_numpy(out) - model(x)).abs().max()
    assert difference <= 1e-5 * model(x).abs().max()  # 1 - erf in the place of erfc


@pytest.mark.parametrize("spec", ["gn2+pn", "gn2", "bn", "none"])
def test_scripting_asks_for_folding_and_takes_what_is_folded(spec: str) -> None:
    model, x = network("silu", spec).eval(), image()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=r"torch.jit.script does not take .*: fold the network"):
            torch.jit.script(model)
        assert_within_1e_6(torch.jit.script(fold_proxy_norm(model))(x), model(x))
