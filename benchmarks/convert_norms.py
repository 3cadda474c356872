"""What `convert_norms` makes of networks that are not ours: the table of docs/convert.md.

    python benchmarks/convert_norms.py            # print the table
    python benchmarks/convert_norms.py --write    # and put it into docs/convert.md

Each network is built with fresh weights; a copy converted to bn gives bit for bit its outputs, in
training and in inference; converted to gn4+pn it takes one step of SGD.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import List

import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ipu_proxynorm.norm import convert_norms

SPEC = "gn4+pn"
PAGE = Path(__file__).parents[1] / "docs" / "convert.md"
NETWORKS = {
    "torchvision": (
        *("resnet18", "resnet50", "resnext50_32x4d", "regnet_x_400mf", "regnet_y_400mf"),
        *("efficientnet_b0", "efficientnet_v2_s", "mobilenet_v2", "mobilenet_v3_large"),
        *("densenet121", "inception_v3", "convnext_tiny"),
    ),
    "timm": (
        *("resnet18", "resnet50", "seresnet50", "resnext50_32x4d", "resnetv2_50"),
        *("regnetx_002", "regnety_002", "efficientnet_b0", "mobilenetv2_100"),
        *("mobilenetv3_large_100", "repvgg_a0", "convnext_atto"),
    ),
}
HEADER = (
    "| network | norms | fused | without activation | refused | forwards rewritten |\n"
    "|---|---|---|---|---|---|"
)


def create(library: str, name: str) -> nn.Module:
    """Return a network with fresh weights."""
    if library == "timm":
        return timm.create_model(name, pretrained=False)
    more = {"init_weights": False} if name == "inception_v3" else {}
    return torchvision.models.get_model(name, weights=None, **more)


def step(model: nn.Module, size: int) -> None:
    """Take one step of SGD, and see that the loss is finite and each parameter has a gradient."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    output = model.train()(torch.randn(2, 3, size, size))
    outputs = output if isinstance(output, tuple) else (output,)  # Inception's auxiliary head
    loss = sum(F.cross_entropy(logits, torch.tensor([1, 2])) for logits in outputs)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    if without or not torch.isfinite(loss):
        raise RuntimeError(f"loss {loss}; without a gradient: {without}")
    optimizer.step()


def check_identity(model: nn.Module, size: int) -> None:
    """See that a copy of the network, converted to Batch Norm, computes bit for bit the same."""
    converted = copy.deepcopy(model)
    convert_norms(converted, "bn")
    x = torch.randn(2, 3, size, size)
    for training in (True, False):
        outputs = []
        for network in (model, converted):
            torch.manual_seed(0)  # for what drops
            with torch.no_grad():
                output = network.train(training)(x)
            outputs.append(output[0] if isinstance(output, tuple) else output)
        if not torch.equal(*outputs):
            raise RuntimeError("converted to bn, it computes something else")


def row(library: str, name: str) -> str:
    """Return a network's line of the table."""
    model = create(library, name)
    size = 299 if name == "inception_v3" else 64
    check_identity(model, size)
    report = convert_norms(model, SPEC)
    step(model, size)
    counts = report.counts
    reasons = "; ".join(f"{count} {reason}" for reason, count in report.reasons.items())
    return (
        f"| {library} {name} | {len(report.norms)} | {counts['fused']} | {counts['plain']} "
        f"| {reasons or 0} | {len(report.rewritten)} |"
    )


def main() -> None:
    """Print the table, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into docs/convert.md")
    arguments = parser.parse_args()
    rows: List[str] = [row(library, name) for library in NETWORKS for name in NETWORKS[library]]
    table = "\n".join([HEADER, *rows])
    print(table)
    if arguments.write:
        text = PAGE.read_text(encoding="utf-8")
        before, _, _ = text.partition(HEADER)  # the table ends the page
        PAGE.write_text(f"{before}{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
