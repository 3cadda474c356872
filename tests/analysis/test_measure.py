from __future__ import annotations

import pytest
from torch import nn

from ipu_proxynorm.analysis.measure import Measure, power_of_module
from ipu_proxynorm.errors import UserError


class Casting(nn.Module):
    """A network that fixes its own type, as some do in their forward."""

    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 4)

    def forward(self, x):
        return self.norm(x.float())


class Named(Casting):
    """A network whose input has to be named."""

    def forward(self, *, images):
        return self.norm(images)


@pytest.mark.parametrize("network", [Casting, Named])
def test_a_forward_that_cannot_compute_the_noise_is_named(network):
    asked = Measure(images=2, batch_size=2)
    with pytest.raises(UserError, match=rf"^{network.__name__}: its forward .* 2x4x8x8"):
        power_of_module(network(), (4, 8, 8), asked)
