"""Networks as PopTorch programs: accepted operators, float16, magnitudes."""

import pytest
import torch

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.ipu import Classification
from ipu_proxynorm.models import create_model

EFFICIENTNET = {"group_dim": 16, "expansion": 4}


def step(model, std=0.25, size=32):
    """Train one step in float16; return loss, its executor's weights being in ``model``."""
    program = Classification(
        model.half(), (0.5,) * 3, (std,) * 3, 0.1, activations=torch.float16
    ).train()
    optimizer = poptorch.optim.SGD(model.parameters(), lr=0.01, loss_scaling=128.0)
    executor = poptorch.trainingModel(program, poptorch.Options(), optimizer)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    loss, _ = executor(images, torch.tensor([0, 1]))
    executor.copyWeightsToHost()
    executor.destroy()
    return loss


@pytest.mark.parametrize(
    ("name", "options"), [("resnetv2_50", {"width": 16}), ("efficientnet_b0", EFFICIENTNET)]
)
def test_compiles_and_trains_a_step_in_float16(name, options):
    model = create_model(name, "ln+pn", **options)
    before = {name: value.clone() for name, value in model.half().state_dict().items()}
    assert torch.isfinite(step(model))
    changed = 0
    for key, value in model.state_dict().items():
        assert torch.isfinite(value).all(), key
        changed += not torch.equal(value, before[key])
    assert changed > 0.9 * len(before)


@pytest.mark.parametrize("norm", ["bn", "gn4", "ln+pn"])
def test_float16_is_finite_up_to_large_magnitudes(small, family, norm):
    # Pixels 0.5 / 0.001 = 500 from their mean: 200 times what normalized images have.
    options = {"proxy_scale_in_gate": True} if family == "efficientnet g16" else {}
    model = small(family, norm=norm, num_classes=5, **options)
    assert torch.isfinite(step(model, std=0.001, size=64))
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name


def test_float16_inference_is_close_to_float64(small, family):
    model = small(family, norm="ln+pn", num_classes=5).eval().half()
    images = torch.randn(2, 3, 64, 64).half()
    executor = poptorch.inferenceModel(model)
    logits = executor(images).double()
    executor.destroy()
    expected = model.double()(images.double())
    assert (logits - expected).abs().max() < 0.02 * expected.abs().max()
