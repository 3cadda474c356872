"""What Proxy Norm costs on an IPU beside the Group Norm that it corrects, and that it is exact.

    python benchmarks/proxy_norm_price.py

Memory and images per second by prediction; bytes kept of an element as autograd keeps them, which
is what PopART keeps of these operators; errors of the form that programs have, each scale with who
reads it, against the plain form.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Dict, List, Tuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor
from torch.nn import functional as F

from ipu_proxynorm.config import load
from ipu_proxynorm.memory import MIB, ensemble
from ipu_proxynorm.memory.budget import ipu_budgets
from ipu_proxynorm.memory.throughput import throughput
from ipu_proxynorm.models import create_model
from ipu_proxynorm.norm import Conv2d, create_norm_act, hand_on_to, plain_operators
from ipu_proxynorm.prediction.footprint import footprint
from ipu_proxynorm.prediction.sweep import fullest, largest, sweep, with_norm

_BLOCKS = ("layer3.2", "layer3.3", "layer3.4", "layer3.5", "layer4.0", "layer4.1", "layer4.2")
#: Keys that let the last of ResNet-50's four IPUs compute norms and activations again: what its
#: convolutions make, and the blocks' sums, are checkpoints.
_AGAIN = "ipu.recomputation_checkpoints=[" + ",".join(
    f"{block}{part}" for block in _BLOCKS for part in (".conv1", ".conv2", "")
)
#: Recipe, keys, norm with and without proxy, and what was aimed at: a micro-batch.
ROWS: Tuple[Tuple[str, List[str], str, str, int], ...] = (
    ("efficientnet_b0_g16_ln_pn_native", [], "ln+pn", "gn4", 24),
    ("resnetv2_50_gn4", [], "gn4+pn", "gn4", 28),
    ("resnetv2_50_gn4", [_AGAIN + "]"], "gn4+pn", "gn4", 28),
)
_STEPS = (4, 8, 16)


def memory_lines() -> List[str]:
    """Return the table of memory, a line for each recipe and micro-batch."""
    lines = ["| recipe | micro-batch | norm | proxy | more | activations | code |"]
    lines.append("|---|" + "---:|" * 6)
    most = []
    for recipe, keys, proxy, plain, aim in ROWS:
        config = load(f"configs/imagenet/{recipe}.yaml", keys)
        recipe += ", last IPU's norms again" if keys else ""
        found = {norm: footprint(with_norm(config, norm)) for norm in (plain, proxy)}
        central = ensemble()[0]
        for step in _STEPS:
            budgets = {
                norm: fullest(ipu_budgets(it.capture.with_micro_batch(step), it.layout, central))
                for norm, it in found.items()
            }
            without, having = budgets[plain], budgets[proxy]
            more = {
                term: (having.terms[term] - without.terms[term]) / MIB
                for term in ("activations", "code")
            }
            lines.append(
                f"| {recipe} | {step} | {plain} {without.utilisation:.1%} | "
                f"{proxy} {having.utilisation:.1%} | "
                f"{100 * (having.utilisation - without.utilisation):.1f} points | "
                f"{more['activations']:+.1f} MiB | {more['code']:+.1f} MiB |"
            )
        rates = {
            norm: throughput(it.capture, it.layout).images_per_second for norm, it in found.items()
        }
        most.append(
            f"{recipe}, micro-batch {config.ipu.micro_batch_size}: {rates[proxy]:,.0f} images/s "
            f"with {proxy}, {rates[plain]:,.0f} with {plain} ({rates[proxy] / rates[plain]:.2f})"
        )
        fits = {norm: largest(sweep(it, range(1, 41))) for norm, it in found.items()}
        most.append(
            f"{recipe}: the largest micro-batch that fits is {fits[proxy]} with {proxy}, "
            f"{fits[plain]} with {plain} (aim: {aim})"
        )
    return [*lines, "", *most]


def operator_lines(recipe: str, proxy: str, plain: str) -> List[str]:
    """Return each stage's operators, all and distinct ones: of activations, and of smaller things.

    The latter are the proxies' moments, constants of channels, and weights.
    """
    lines = [
        "| stage | norm | pass | of activations | distinct | of channels, weights | distinct |"
    ]
    lines.append("|---:|---|---|" + "---:|" * 4)
    config = load(f"configs/imagenet/{recipe}.yaml")
    found = {norm: footprint(with_norm(config, norm)).capture for norm in (plain, proxy)}
    for stage in range(found[plain].stages):
        for norm, capture in found.items():
            passes = ("forward", capture.forward(stage)), ("backward", capture.backward(stage))
            for name, operators in passes:
                parts: Tuple[List[object], List[object]] = ([], [])
                for operator in operators:
                    moved = (*operator.inputs, *operator.outputs)
                    shapes = [capture.tensors[index].shape for index in moved]
                    images = config.ipu.micro_batch_size
                    small = all(len(shape) != 4 or shape[0] != images for shape in shapes)
                    parts[small].append(operator.signature)
                counts = [f"{len(part)} | {len(set(part))}" for part in parts]
                lines.append(f"| {stage} | {norm} | {name} | {' | '.join(counts)} |")
    return lines


def kept(act: str, hand_on: bool) -> Tuple[int, int]:
    """Return bytes kept of an element between two convolutions, without and with Proxy Norm."""
    found = []
    for spec in ("gn2", "gn2+pn"):
        unit = create_norm_act(spec, 8, act)
        network = torch.nn.Sequential(Conv2d(8, 8, 1), unit, Conv2d(8, 8, 1)).half().to("meta")
        if hand_on:
            hand_on_to(unit, network[2])
        images = torch.empty(4, 8, 32, 32, dtype=torch.float16, device="meta")
        storages: Dict[int, int] = {}

        def pack(tensor: Tensor, of: Tensor = images, to: Dict[int, int] = storages) -> Tensor:
            if tensor.numel() == of.numel():
                to[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
            return tensor

        with plain_operators(), torch.autograd.graph.saved_tensors_hooks(pack, lambda it: it):
            network(images)
        found.append(sum(storages.values()) // images.numel() - 2)  # the images
    return found[0], found[1]


def differences(name: str, act: str) -> float:
    """Return the largest relative difference of outputs and gradients, in float64."""
    torch.manual_seed(0)
    model = create_model(name, "ln+pn", 5, act_layer=act, shallow=True).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    found = []
    for hand_on in (False, True):
        model.zero_grad()
        with plain_operators(hand_on=hand_on):
            logits = model(images)
        F.cross_entropy(logits, torch.tensor([0, 1])).backward()
        found.append([logits.detach(), *(p.grad.clone() for p in model.parameters())])
    return max(float((a - b).norm() / b.norm().clamp_min(1e-30)) for a, b in zip(*found[::-1]))


def main() -> None:
    """Print the tables."""
    print(f"torch {torch.__version__}\n\n## Memory of the fullest IPU\n")
    print("\n".join(memory_lines()))
    for recipe, keys, proxy, plain, _ in ROWS:
        if not keys:
            print(f"\n## Operators of {recipe}\n")
            print("\n".join(operator_lines(recipe, proxy, plain)))
    print("\n## Bytes kept of an element in float16, up to and with the next convolution's input\n")
    print("| activation | Group Norm | Proxy Norm, plain form | as programs have it |")
    print("|---|---:|---:|---:|")
    for act in ("relu", "relu6", "silu", "gelu"):
        without, plain = kept(act, False)
        print(f"| {act} | {without} | {plain} | {kept(act, True)[1]} |")
    print("\n## Largest relative difference from the plain form, outputs and gradients, float64\n")
    for name in ("efficientnet_b0", "resnet50", "resnetv2_50", "resnextv2_50_32x4d"):
        for act in ("relu", "silu"):
            print(f"- {name}, {act}: {differences(name, act):.1e}")


if __name__ == "__main__":
    main()
