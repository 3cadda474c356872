"""Keys of ``model`` that a network does not have are refused through a configuration, by name."""

import pytest

from ipu_proxynorm.config import ModelConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import create_network


@pytest.mark.parametrize(
    ("name", "keys", "parts"),
    [
        ("resnetv2_8", {"group_dim": 16}, ["group_dim=16: resnetv2_8 has no", "zero_init_last"]),
        ("resnet20", {"proxy_scale_in_gate": True}, ["proxy_scale_in_gate=True: resnet20 has no"]),
        ("efficientnet_b0", {"width": 8}, ["width=8: efficientnet_b0 has no", "expansion"]),
        ("random_50", {"dropout": 0.1}, ["dropout=0.1: random_50 has no", "it has width"]),
        ("resnetv2_51", {}, ["nearest is 'resnetv2_50'"]),
    ],
)
def test_keys_that_the_network_does_not_have(name, keys, parts):
    with pytest.raises(UserError) as caught:
        create_network(ModelConfig(name=name, norm="ln", **keys), 10, 3, (32, 32))
    message = str(caught.value)
    assert message.startswith(f"model=({name}, norm=ln): ")
    assert "\n" not in message
    for part in parts:
        assert part in message
