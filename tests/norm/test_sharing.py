from __future__ import annotations

import contextlib
import copy
import pickle
from typing import List

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ipu_proxynorm.norm import create_norm_act, plain_operators, share_moments
from ipu_proxynorm.norm.modules import ProxyNormAct


def network(widths: List[int], acts: List[str], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: List[nn.Module] = []
    channels = 3
    for width, act in zip(widths, acts):
        layers += [nn.Conv1d(channels, width, 3, padding=1), create_norm_act("gn2+pn", width, act)]
        channels = width
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 6, 2)).double()
    for layer in model:
        if isinstance(layer, ProxyNormAct):
            for parameter in layer.parameters():
                nn.init.normal_(parameter, mean=0.2, std=0.5)
    return model


def gradients(model: nn.Module, batches: List[Tensor], plain: bool) -> List[Tensor]:
    model.zero_grad()
    with plain_operators() if plain else contextlib.nullcontext():
        for x in batches:
            model(x).square().mean().backward()
    return [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
@given(
    layers=st.lists(
        st.tuples(
            st.sampled_from([2, 4, 8]), st.sampled_from(["relu", "silu", "relu6", "identity"])
        ),
        min_size=1,
        max_size=4,
    ),
    accumulation=st.integers(1, 8),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_gradients_equal_those_of_each_layer_alone(
    plain: bool, layers: list, accumulation: int, seed: int
) -> None:
    model = network([w for w, _ in layers], [a for _, a in layers], seed)
    batches = list(torch.randn(accumulation, 2, 3, 6, dtype=torch.float64).unbind())
    alone = gradients(model, batches, plain)
    share_moments(model)
    together = gradients(model, batches, plain)
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-9)


def test_once_per_weight_update_however_the_weights_are_written() -> None:
    model = network([4, 8], ["relu", "relu"])
    shared = share_moments(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    for update in range(3):
        for _ in range(5):
            model(x).sum().backward()
        assert shared.computed == update + 1
        optimizer.step()
    expected = copy.deepcopy(model)
    for module in (model, expected):
        module[1].proxy_bias.data.fill_(0.7)  # leaves no trace in autograd's version counter
    torch.testing.assert_close(model(x), expected(x))
    assert shared.computed == 4


def test_each_activation_is_computed_once_for_all_its_layers() -> None:
    model = network([4, 8, 4, 2], ["relu", "silu", "relu", "silu"])
    shared = share_moments(model)
    model(torch.randn(2, 3, 6, dtype=torch.float64))
    assert shared.computed == 2


def test_modules_of_a_pipeline_stage() -> None:
    model = network([4, 8, 4, 2], ["relu"] * 4)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = model(x)
    first, second = share_moments(*model[:4]), share_moments(*model[4:8])
    torch.testing.assert_close(model(x), expected)
    assert (first.computed, second.computed) == (1, 1)
    assert len(first.layers) == len(second.layers) == 2


def test_a_layer_used_twice_and_a_layer_called_alone() -> None:
    layer = create_norm_act("ln+pn", 4)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    x = torch.randn(2, 4, 5)
    model = Twice()
    expected = model(x)
    share_moments(model)
    torch.testing.assert_close(model(x), expected)
    nn.init.constant_(layer.proxy_bias, 0.5)
    alone = layer(x)
    with plain_operators():
        torch.testing.assert_close(layer(x), alone)


def test_activation_checkpointing() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=False)

    model = network([4, 4], ["relu", "silu"])
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    expected = gradients(model, [x], plain=False)
    wrapped = Checkpointed(model)
    share_moments(wrapped)
    torch.testing.assert_close(gradients(wrapped, [x], plain=False), expected)


@pytest.mark.parametrize("plain", [False, True], ids=["fused", "plain"])
def test_a_copy_shares_its_own_moments(plain: bool) -> None:
    model = network([4, 8], ["relu", "silu"])
    share_moments(model)
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    with plain_operators() if plain else contextlib.nullcontext():
        expected = model(x)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            torch.testing.assert_close(twin(x), expected)
            with torch.no_grad():
                twin[1].bias.add_(1.0)
            assert not torch.allclose(twin(x), expected)
        torch.testing.assert_close(model(x), expected)


def test_nothing_is_left_behind() -> None:
    model = network([4, 8], ["relu", "silu"])
    shared = share_moments(model)
    with plain_operators():
        model(torch.randn(2, 3, 6, dtype=torch.float64))
    assert all(layer._shared is None for layer in shared.layers)
    shared.remove()
    assert not model._forward_pre_hooks
    assert not model._forward_hooks


def test_refuses_a_network_without_proxy_norm() -> None:
    with pytest.raises(ValueError, match="no Proxy Norm layer"):
        share_moments(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="no Proxy Norm layer"):
        share_moments()
