from __future__ import annotations

import copy
import math
import pickle
from typing import Callable, Optional

import pytest
import torch
from torch import Tensor, nn

from ipu_proxynorm.norm import create_norm_act, plain_operators, proxy_norm
from ipu_proxynorm.norm.activations import ACTIVATIONS
from ipu_proxynorm.norm.modules import ProxyNormAct

SHAPES = [(3, 8), (3, 8, 5), (3, 8, 5, 4), (3, 8, 2, 3, 4)]


def randomize(module: nn.Module, spread: float = 0.5) -> nn.Module:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=spread)
    return module


def written_out(
    module: ProxyNormAct, x: Tensor, activation: Optional[Callable[[Tensor], Tensor]] = None
) -> Tensor:
    """The definition, in float64, with the moments of many quantiles."""
    groups = x.double().reshape(x.shape[0], module.num_groups, -1)
    y = (groups - groups.mean(2, keepdim=True)) / (
        groups.var(2, unbiased=False, keepdim=True) + module.eps
    ).sqrt()
    y = y.reshape(x.shape).movedim(1, -1)
    weight, bias, proxy_weight, proxy_bias = (
        p.double() for p in (module.weight, module.bias, module.proxy_weight, module.proxy_bias)
    )
    phi = activation or module.activation.function
    levels = 2 * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 - 1
    proxy = 2**0.5 * torch.erfinv(levels).unsqueeze(1) * (1 + proxy_weight) + proxy_bias
    proxy = phi(proxy * weight + bias)  # (quantiles, C)
    std = (proxy.var(0, unbiased=False) + module.proxy_eps).sqrt()
    return ((phi(y * weight + bias) - proxy.mean(0)) / std).movedim(-1, 1)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_follows_the_definition(act: str) -> None:
    for spec in ("ln+pn", "gn2+pn", "gn4+pn"):
        module = randomize(create_norm_act(spec, 8, act))
        assert isinstance(module, ProxyNormAct)
        for shape in SHAPES:
            x = torch.randn(shape) * 2 + 1
            expected = written_out(module, x)
            torch.testing.assert_close(module(x).double(), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "base", [nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.Hardtanh, nn.GELU, nn.Softplus]
)
def test_a_subclass_of_an_activation_may_compute_something_else(base: type[nn.Module]) -> None:
    class Doubled(base):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    module = randomize(create_norm_act("gn2+pn", 8, Doubled))
    x = torch.randn(3, 8, 5, 4)
    expected = written_out(module, x, Doubled())
    torch.testing.assert_close(
        module(x).double(), expected, rtol=2e-3, atol=2e-3
    )  # a kink costs the quadrature


@pytest.mark.parametrize("spec", ["gn2+pn", "gn2", "bn", "none"])
def test_refuses_activations_that_hold_or_draw_something(spec: str) -> None:
    with pytest.raises(ValueError, match=r"PReLU holds 'weight'.* such as leaky_relu"):
        create_norm_act(spec, 8, nn.PReLU)
    for module in (nn.RReLU(), nn.Sequential(nn.ReLU(), nn.Dropout())):
        with pytest.raises(ValueError, match="draws random numbers"):
            create_norm_act(spec, 8, module)
    create_norm_act(spec, 8, nn.PReLU, apply_act=False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        ("ln", nn.GroupNorm(1, 8)),
        ("gn2", nn.GroupNorm(2, 8)),
        ("in", nn.GroupNorm(8, 8)),
    ],
)
def test_equals_torch_without_proxy(spec: str, plain: nn.Module, shape: tuple[int, ...]) -> None:
    module = randomize(create_norm_act(spec, 8, "silu"))
    plain.load_state_dict(module.state_dict(), strict=spec != "gn2")
    x = torch.randn(shape)
    torch.testing.assert_close(module(x), nn.functional.silu(plain(x)))


def test_batch_norm_equals_torch_and_shares_its_state_dict() -> None:
    module, plain = create_norm_act("bn", 8, "relu"), nn.BatchNorm2d(8)
    x = torch.randn(4, 8, 5, 5)
    torch.testing.assert_close(module(x), plain(x).relu())
    assert list(module.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(module.eval()(x), plain.eval()(x).relu())


def test_state_dict_names() -> None:
    module = create_norm_act("ln+pn", 8)
    assert list(module.state_dict()) == ["weight", "bias", "proxy_weight", "proxy_bias"]
    grouped = create_norm_act("gn4+pn", 8)
    assert list(grouped.state_dict()) == [*module.state_dict(), "channel_grouping"]
    assert module.weight.eq(1).all()
    for name in ("bias", "proxy_weight", "proxy_bias"):
        assert getattr(module, name).eq(0).all()


def test_without_an_activation_the_norm_keeps_its_scale_and_drops_its_shift() -> None:
    module = create_norm_act("gn4+pn", 8, "silu", apply_act=False)
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(module(x), nn.functional.group_norm(x, 4))
    assert list(create_norm_act("ln", 8, apply_act=False).state_dict()) == ["weight", "bias"]
    assert list(create_norm_act("ln+pn", 8, None).state_dict()) == ["weight"]


def test_none_is_the_activation_alone() -> None:
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(create_norm_act("none", 8, "relu")(x), x.relu())
    torch.testing.assert_close(create_norm_act("none", 8, apply_act=False)(x), x)


def test_an_output_does_not_depend_on_the_rest_of_the_batch() -> None:
    module = randomize(create_norm_act("gn4+pn", 8))
    image = torch.randn(1, 8, 5, 5)
    alone = module(image)
    crowd = torch.cat([torch.randn(6, 8, 5, 5) * 100 + 7, image])
    torch.testing.assert_close(module(crowd)[-1:], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("spec", ["gn2+pn", "ln", "bn"])
@pytest.mark.parametrize("eps", [-1e-5, math.inf, math.nan])
def test_refuses_what_no_variance_can_be_added_to(spec: str, eps: float) -> None:
    with pytest.raises(ValueError, match=r"^eps=.*expected 0 or more"):
        create_norm_act(spec, 8, eps=eps)
    if "pn" in spec:
        with pytest.raises(ValueError, match=r"proxy_eps=.*expected 0 or more"):
            create_norm_act(spec, 8, proxy_eps=eps)


def test_refuses_the_wrong_number_of_channels() -> None:
    with pytest.raises(ValueError, match=r"expected an input of shape \(N, 3, \*\), got \(3,\)"):
        proxy_norm(torch.randn(3), torch.ones(3), *torch.zeros(3, 3))
    with pytest.raises(ValueError, match=r"expected an input of shape \(N, 8, \*\), got \(2, 4\)"):
        create_norm_act("gn4+pn", 8)(torch.randn(2, 4))
    with pytest.raises(ValueError, match="3 groups do not divide 8 channels"):
        create_norm_act("gn3+pn", 8)


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_survives_copy_and_pickle(act: str) -> None:
    module = randomize(create_norm_act("gn4+pn", 8, act))
    x = torch.randn(2, 8, 3, 3)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(twin(x), module(x), atol=0, rtol=0)


KINDS = ["bn", "in", "ln", "gn2", "ln+pn", "gn2+pn"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spec", KINDS)
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_every_norm_takes_every_precision_and_shape(
    spec: str, act: str, dtype: torch.dtype
) -> None:
    module = create_norm_act(spec, 8, act, dtype=torch.promote_types(dtype, torch.float32))
    reference = copy.deepcopy(module).double()
    for shape in SHAPES[1:]:
        x = torch.randn(shape).to(dtype).requires_grad_()
        out = module(x)
        out.float().square().mean().backward()
        assert out.dtype == x.grad.dtype == dtype
        assert out.shape == shape
        expected = reference(x.detach().double())
        tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 2e-2
        torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)
        assert all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("spec", ["in", "ln", "gn2", "ln+pn", "gn2+pn", "none"])
@pytest.mark.parametrize("shape", [(0, 8), (0, 8, 5), (0, 8, 5, 4)])
def test_empty_batch(spec: str, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, requires_grad=True)
    module = create_norm_act(spec, 8, "silu")
    module(x).sum().backward()
    assert x.grad.shape == shape
    with plain_operators():
        assert module(x).shape == shape


@pytest.mark.parametrize("spec", ["ln+pn", "gn4+pn"])
def test_replicas_compute_what_one_does(spec: str) -> None:
    module = randomize(create_norm_act(spec, 8, "silu")).double()
    batch = torch.randn(8, 8, 4, 4, dtype=torch.float64)
    whole = module(batch)
    whole.square().sum().backward()
    for replicas in (2, 4, 8):
        twins = [copy.deepcopy(module) for _ in range(replicas)]
        for twin in twins:
            twin.zero_grad()
        parts = [twin(part) for twin, part in zip(twins, batch.chunk(replicas))]
        torch.testing.assert_close(torch.cat(parts), whole)
        torch.cat(parts).square().sum().backward()
        for one, *others in zip(module.parameters(), *(t.parameters() for t in twins)):
            torch.testing.assert_close(sum(p.grad for p in others), one.grad)


def test_moments_depend_on_parameters_only() -> None:
    module = randomize(create_norm_act("gn4+pn", 8, "silu"))
    before = module.moments()
    for scale in (1e-3, 1.0, 1e3):
        module(torch.randn(4, 8, 5, 5) * scale + scale)
        torch.testing.assert_close(module.moments(), before, rtol=0, atol=0)


@pytest.mark.parametrize("spec", ["ln", "gn2", "ln+pn", "gn2+pn"])
def test_channels_last_is_kept(spec: str) -> None:
    module = create_norm_act(spec, 8, "silu")
    for shape, layout in [
        ((2, 8, 5, 4), torch.channels_last),
        ((2, 8, 2, 3, 4), torch.channels_last_3d),
    ]:
        x = torch.randn(shape).contiguous(memory_format=layout)
        assert module(x).is_contiguous(memory_format=layout)
        torch.testing.assert_close(module(x), module(x.contiguous()))
