"""The paper's random network: its definition, and what the paper says of it, at a small size."""

import math

import pytest
import torch

from ipu_proxynorm.analysis import record_power
from ipu_proxynorm.models import create_model
from ipu_proxynorm.models.random_net import RandomNet


def test_is_drawn_as_defined():
    net = RandomNet(3, norm="ln", in_chans=1, width=128)
    conv = net.layers[2][0]
    assert conv.padding_mode == "circular"
    assert conv.bias is None
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 128)), rel=0.02)
    gammas = torch.cat([layer[1].weight for layer in net.layers])
    betas = torch.cat([layer[1].bias for layer in net.layers])
    assert (gammas.mean().item(), betas.mean().item()) == pytest.approx((1, 0), abs=0.04)
    assert (gammas.std().item(), betas.std().item()) == pytest.approx((0.2, 0.2), abs=0.03)


def test_circular_padding_commutes_with_circular_shifts():
    net = RandomNet(3, norm="gn4+pn", in_chans=1, width=8).layers.double()
    x = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    shifted = net(x.roll((2, 3), (2, 3)))
    torch.testing.assert_close(shifted, net(x).roll((2, 3), (2, 3)))


def test_layer_norm_collapses_and_proxy_norm_prevents_it():
    p1 = {}
    for norm in ("bn", "ln", "ln+pn"):
        torch.manual_seed(0)
        net = create_model("random_50", norm=norm, in_chans=1, width=32)
        found = list(record_power(net, [torch.randn(32, 1, 4, 4)]).values())
        p1[norm] = [power.p1 for power in found]
    assert p1["ln"][0] < 0.1
    assert p1["ln"][-1] > 0.9
    assert max(p1["bn"]) < 1e-8
    assert max(p1["ln+pn"]) < 0.25
