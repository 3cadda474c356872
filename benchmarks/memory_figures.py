"""Absolute figures published for other programs, beside what is predicted for them.

    python benchmarks/memory_figures.py

No parameter is fitted to these programs, none of which is a ResNet or an EfficientNet. Sources:
graphcore/examples' Poplar tutorial 4 (the matrix product) and its PyTorch tutorial on mixed
precision (the small CNN, read off its picture), a public ViT script, and a test of
graphcore/ipu_tensorflow_addons (the dense layer, tolerance 10 %).
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Tuple

import torch
import torchvision
from torch import Tensor, nn

from ipu_proxynorm import memory


class Product(nn.Module):
    """The product of two matrices that both come from the host."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return ``left`` times ``right``."""
        return left @ right


def small_cnn() -> nn.Module:
    """Return the tutorial's network for grey images of 128 x 128; its loss is left out."""
    return nn.Sequential(
        *(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(5, 12, 5), nn.ReLU(), nn.GroupNorm(3, 12)),
        *(nn.Flatten(), nn.Linear(12 * 59 * 59, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def budget(
    model: nn.Module,
    shapes: Sequence[Tuple[int, ...]],
    precision: str,
    chip: str = "mk2",
    optimizer: Optional[memory.OptimizerMemory] = None,
) -> memory.IpuBudget:
    """Return the budget of a program on one IPU."""
    layout = memory.Layout(chip=chip, precision=precision)
    inputs = [torch.empty(shape, device="meta") for shape in shapes]
    return memory.predict(model, layout, inputs, optimizer=optimizer, advise=False).ipus[0]


def rows() -> List[Tuple[str, str, float, float]]:
    """Return program, unit, published and predicted figure."""
    with torch.device("meta"):
        vit, dense, cnn = torchvision.models.vit_b_16(), nn.Linear(4096, 1024), small_cnn()
    images = [(64, 3, 224, 224)]
    mk1, mk2 = (memory.find_chip(name) for name in ("mk1", "mk2"))
    found = [
        ("matrix product 9000x6000x300, float32, tile 1", "kB", 674.752,
         budget(Product(), [(9000, 6000), (6000, 300)], "32.32").used / mk2.tiles / 1e3),
        ("ViT-B/16 inference, 64 images, tile 0, if float32", "kB", 826.928,
         budget(vit, images, "32.32").used / mk2.tiles / 1e3),
        ("ViT-B/16 inference, 64 images, tile 0, if float16", "kB", 826.928,
         budget(vit, images, "16.16").used / mk2.tiles / 1e3),
        ("dense layer 4096 to 1024, 16 rows, float32, all tiles", "MB", 32.8,
         mean_bytes(budget(dense, [(16, 4096)], "32.32")) / 1e6),
    ]  # fmt: skip
    for precision, published in (("32.32", 136.0), ("16.16", 110.0)):
        accumulator = 2 if precision == "16.16" else 4
        adamw = memory.optimizer_memory("adamw", accumulator_bytes=accumulator)
        trained = budget(cnn, [(12, 1, 128, 128)], precision, "mk1", adamw)
        name = f"small CNN in training, 12 images, Mk1, {precision}, mean tile"
        found.append((name, "kB", published, mean_bytes(trained) / mk1.tiles / 1e3))
    return found


def mean_bytes(found: memory.IpuBudget) -> float:
    """Return the bytes of all tiles, not as if each were as full as the fullest."""
    return float(found.used - found.terms["tile_imbalance"])


def main() -> None:
    """Print the table."""
    print(f"{'program':58s}{'published':>12s}{'predicted':>12s}")
    for name, unit, published, predicted in rows():
        deviation = predicted / published - 1
        print(f"{name:58s}{published:9.1f} {unit}{predicted:9.1f} {unit} {deviation:+5.0%}")


if __name__ == "__main__":
    main()
