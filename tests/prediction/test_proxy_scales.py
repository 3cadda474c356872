"""Where the memory command says that each scale goes is where the program has it."""

import pytest
import torch

from ipu_proxynorm import memory
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import Pending, ProxyNormAct
from ipu_proxynorm.prediction.proxy_scales import (
    BIAS,
    FOLDED,
    GATE,
    ITSELF,
    MEAN,
    WEIGHTS,
    places_of_scales,
    scale_sentence,
)


@pytest.mark.parametrize(
    ("name", "act", "expected"),
    [
        ("efficientnet_b0", "silu", {WEIGHTS, GATE, MEAN}),
        ("resnetv2_20", "relu", {FOLDED, MEAN}),
        ("resnetv2_50", "relu", {FOLDED, BIAS, MEAN}),
        ("resnetv2_20", "silu", {WEIGHTS, MEAN}),
    ],
)
def test_places_are_those_of_the_program(name, act, expected):
    model = create_model(name, "ln+pn", 5, act_layer=act, shallow=True)
    handed = {}
    for layer, module in model.named_modules():
        if isinstance(module, ProxyNormAct):
            module.register_forward_hook(
                lambda m, x, out, layer=layer: handed.update({layer: isinstance(out, Pending)})
            )
    found = memory.capture(model, [torch.empty(2, 3, 64, 64)])
    places = places_of_scales(model, found, prefix="")
    assert places.keys() == handed.keys()
    assert set(places.values()) == expected
    for layer, place in places.items():
        assert handed[layer] == (place not in (FOLDED, ITSELF)), layer
    assert scale_sentence(places).count(",") == len(expected) - 1


def test_a_network_without_proxies_says_nothing():
    assert scale_sentence({}) == ""
