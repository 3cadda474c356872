from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ipu_proxynorm.norm import create_norm_act, group_norm, plain_operators, regroup_channels


def loop_group_norm(x: Tensor, groups: int, members: list[list[int]]) -> Tensor:
    """Group by group, the channels of each given in full."""
    out = torch.empty_like(x)
    for channels in members:
        part = x[:, channels].flatten(1)
        mean, var = part.mean(1), part.var(1, unbiased=False)
        shape = [-1] + [1] * (x.dim() - 1)
        out[:, channels] = (x[:, channels] - mean.view(shape)) / (var + 1e-5).sqrt().view(shape)
    return out


@pytest.mark.parametrize("shape", [(3, 12), (3, 12, 5), (2, 12, 4, 3), (2, 12, 2, 2, 3)])
def test_strided_groups_are_channels_modulo_the_groups(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    strided = [[c for c in range(12) if c % 4 == g] for g in range(4)]
    contiguous = [[c for c in range(12) if c // 3 == g] for g in range(4)]
    torch.testing.assert_close(group_norm(x, 4, grouping="strided"), loop_group_norm(x, 4, strided))
    torch.testing.assert_close(group_norm(x, 4), loop_group_norm(x, 4, contiguous))


@pytest.mark.parametrize("spec", ["gn4", "gn4+pn"])
@pytest.mark.parametrize("act", ["relu", "silu"])
def test_a_strided_layer_is_a_contiguous_one_of_permuted_channels(spec: str, act: str) -> None:
    strided = create_norm_act(spec, 12, act, channel_grouping="strided").double()
    contiguous = create_norm_act(spec, 12, act).double()
    for (_, a), (_, b) in zip(strided.named_parameters(), contiguous.named_parameters()):
        nn.init.normal_(a, mean=0.5)
        b.data = regroup_channels(a.data, 4, "strided", "contiguous")
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    permuted = contiguous(regroup_channels(x, 4, "strided", "contiguous", dim=1))
    expected = regroup_channels(permuted, 4, "contiguous", "strided", dim=1)
    torch.testing.assert_close(strided(x), expected)
    assert not torch.allclose(contiguous(x), expected)


@pytest.mark.parametrize("spec", ["gn4+pn", "gn4"])
@pytest.mark.parametrize("layer_grouping", ["contiguous", "strided"])
def test_a_device_that_groups_strided(
    spec: str, layer_grouping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = create_norm_act(spec, 12, "silu", channel_grouping=layer_grouping).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=0.5)
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64)
    expected = module(x)
    native = nn.functional.group_norm

    def strided_group_norm(x, groups, weight, bias, eps):  # type: ignore[no-untyped-def]
        y = regroup_channels(x, groups, "strided", "contiguous", dim=1)
        w, b = (regroup_channels(p, groups, "strided", "contiguous") for p in (weight, bias))
        y = native(y, groups, w, b, eps)
        return regroup_channels(y, groups, "contiguous", "strided", dim=1)

    monkeypatch.setattr(nn.functional, "group_norm", strided_group_norm)
    with plain_operators(device_grouping="strided"):
        torch.testing.assert_close(module(x), expected)


def test_conversion_of_a_network_keeps_its_function() -> None:
    def network(grouping: str) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(3, 12, 3),
            create_norm_act("gn3+pn", 12, "silu", channel_grouping=grouping),
            nn.Conv2d(12, 4, 3),
        )

    strided, contiguous = network("strided"), network("contiguous")
    for parameter in strided.parameters():
        nn.init.normal_(parameter, std=0.3)
    state = strided.state_dict()
    state["1.channel_grouping"] = torch.tensor(0)
    for name, dim in [("0.weight", 0), ("0.bias", 0), ("2.weight", 1)]:
        state[name] = regroup_channels(state[name], 3, "strided", "contiguous", dim=dim)
    for name in ("weight", "bias", "proxy_weight", "proxy_bias"):
        state[f"1.{name}"] = regroup_channels(state[f"1.{name}"], 3, "strided", "contiguous")
    contiguous.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(contiguous(x), strided(x))


def test_there_and_back() -> None:
    x = torch.randn(2, 12, 3)
    there = regroup_channels(x, 4, "contiguous", "strided", dim=-2)
    assert not torch.equal(there, x)
    assert torch.equal(regroup_channels(there, 4, "strided", "contiguous", dim=1), x)


@pytest.mark.parametrize("spec", ["gn4", "gn4+pn"])
def test_a_mismatch_is_refused_in_one_sentence(spec: str) -> None:
    strided = nn.Sequential(create_norm_act(spec, 8, channel_grouping="strided"))
    contiguous = nn.Sequential(create_norm_act(spec, 8))
    with pytest.raises(
        ValueError, match=r"'0\.channel_grouping' .* is strided, .* contiguous"
    ) as e:
        contiguous.load_state_dict(strided.state_dict())
    assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match=r"'0\.channel_grouping' .* is contiguous, .* strided"):
        strided.load_state_dict(contiguous.state_dict())
    contiguous.load_state_dict(create_and_save(spec))


def create_and_save(spec: str) -> dict:
    return nn.Sequential(create_norm_act(spec, 8)).state_dict()


def test_weights_of_torch_group_norm_are_contiguous() -> None:
    state = nn.GroupNorm(4, 8).state_dict()
    create_norm_act("gn4", 8).load_state_dict(state)
    with pytest.raises(ValueError, match="is contiguous"):
        create_norm_act("gn4", 8, channel_grouping="strided").load_state_dict(state)


@pytest.mark.parametrize("spec", ["ln+pn", "in", "gn8"])
def test_one_group_or_one_channel_each_has_nothing_to_state(spec: str) -> None:
    strided = create_norm_act(spec, 8, channel_grouping="strided")
    assert "channel_grouping" not in strided.state_dict()
    create_norm_act(spec, 8).load_state_dict(strided.state_dict())
    assert "groups" not in strided.extra_repr()


def test_repr_says_how_channels_are_grouped() -> None:
    text = repr(create_norm_act("gn4+pn", 8, "silu", channel_grouping="strided", recompute=True))
    assert text == (
        "ProxyNormAct(8, gn4+pn, act=silu, eps=1e-05, strided groups, proxy_eps=0.03, "
        "method=exact, recompute=True)"
    )


def test_refuses_unknown_groupings_and_groups_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match=r"unknown channel grouping 'stride'.*did you mean 'strid"):
        create_norm_act("gn4", 8, channel_grouping="stride")
    with pytest.raises(ValueError, match="3 groups do not divide 8 channels"):
        regroup_channels(torch.zeros(8), 3, "strided", "contiguous")
    with pytest.raises(ValueError, match="0 groups do not divide 8"):
        regroup_channels(torch.randn(8), 0, "contiguous", "strided")
    for dim in (2, -3):
        with pytest.raises(ValueError, match=rf"dim={dim}: .*shape \(8, 4\)"):
            regroup_channels(torch.randn(8, 4), 2, "contiguous", "strided", dim=dim)
