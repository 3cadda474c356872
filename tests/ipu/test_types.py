"""Every recipe's programs on meta tensors of their true types, by which PopTorch types them.

On torch 2.0.1 this is what PopTorch does (dispatch_tracer/TypeInferenceHandler.cpp:34).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Dict, List, Tuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ipu_proxynorm.config import load
from ipu_proxynorm.config.schema import ModelConfig
from ipu_proxynorm.config.shipped import recipes
from ipu_proxynorm.ipu import Classification, create_network, precision_of
from ipu_proxynorm.models.efficientnet import EfficientNet
from ipu_proxynorm.models.factory import architecture

PRECISIONS = ("32.32", "16.32", "16.16")
SPECS = ("bn", "in", "ln", "gn4", "ln+pn", "gn4+pn", "none", "gn4+pn+ws")
SIZE = 64


class Checked(TorchDispatchMode):
    """Notes norms with one of weight and bias, and float16 that meets float32 in a product."""

    def __init__(self) -> None:
        super().__init__()
        self.found: List[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        is_norm = name in ("aten::native_group_norm", "aten::native_batch_norm")
        if is_norm and (args[1] is None) != (args[2] is None):
            self.found.append(f"{name}: one of weight and bias")
        if name in ("aten::convolution", "aten::mm", "aten::addmm", "aten::bmm"):
            floats = {t.dtype for t in args if isinstance(t, torch.Tensor)}
            if len(floats) > 1:
                self.found.append(f"{name}: {floats}")
        return func(*args, **(kwargs or {}))


def _networks() -> Dict[Tuple[Any, ...], ModelConfig]:
    """Return the recipes' networks, each once."""
    found = {}
    for path in recipes():
        model = load(path).model
        found[dataclasses.astuple(model)] = model
    return found


NETWORKS = list(_networks().values())
# One of each family with every norm spec and precision, the others with their own norm in 16.32.
FAMILIES = {architecture(model.name).network: model for model in NETWORKS}
CASES = [
    (model, norm, precision)
    for model in FAMILIES.values()
    for norm in SPECS
    for precision in PRECISIONS
]
CASES += [(model, model.norm, "16.32") for model in NETWORKS]
PUBLISHED = {"padding": "same", "proxy_method": "sampled", "proxy_scale": "published"}
CASES += [
    (dataclasses.replace(model, **PUBLISHED), "ln+pn", "16.32")
    for network, model in FAMILIES.items()
    if network is EfficientNet
]


def _label(value: Any) -> str:
    return value.name if isinstance(value, ModelConfig) else str(value)


@pytest.mark.skipif(not torch.__version__.startswith("2.0."), reason="PopTorch's torch is 2.0")
@pytest.mark.parametrize(("model", "norm", "precision"), CASES, ids=_label)
def test_programs_have_the_types_of_their_precision(
    model: ModelConfig, norm: str, precision: str
) -> None:
    types = precision_of(precision)
    config = dataclasses.replace(model, norm=norm)
    seen: List[torch.dtype] = []
    with torch.device("meta"):
        network = create_network(config, 10, 3, (SIZE, SIZE), shallow=True).to(types.weights)
        network.register_forward_hook(lambda module, inputs, logits: seen.append(logits.dtype))
        program = Classification(network, (0.5,) * 3, (0.3,) * 3, 0.1, None, types.activations)
        images = torch.empty(2, 3, SIZE, SIZE, dtype=torch.uint8)
        labels = torch.zeros(2, dtype=torch.int64)
        with Checked() as checked:
            loss, _ = program.train()(images, labels)
            parameters = list(network.parameters())
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            program.eval()(images)
    assert checked.found == []
    assert loss.dtype == torch.float32
    assert seen == [types.activations] * 2
    assert {g.dtype for g in gradients if g is not None} == {types.weights}
    assert math.prod(loss.shape) == 1
