"""How good the memory prediction is, against configurations that ran on real IPUs.

    python benchmarks/memory_accuracy.py [--plot docs/memory_accuracy.png]

Nothing is judged by a calibration that has seen it: rows by one fitted without their family of
networks (ResNet, ResNeXt, EfficientNet), single convolutions by one fitted to the other network's.
The 30 published EfficientNet configurations, the matrix products and the pair that Graphcore's
tests assert are judged by the calibration that the package ships, which is fitted without them.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, Dict, List, Optional, Sequence

import memory_rows
import numpy as np
import torch
import torchvision
from memory_calibrate import Observation, fit, observe, predicted_rest, utilisation
from memory_rows import Convolution

from ipu_proxynorm import memory
from ipu_proxynorm.memory.budget import ipu_loads
from ipu_proxynorm.memory.convolutions import single_convolution


@dataclasses.dataclass(frozen=True)
class Judged:
    """A row's predicted utilisation; of maxima also at twice the micro-batch."""

    seen: Observation
    used: float
    doubled: Optional[float]


def judge(seen: Observation, parameters: memory.Parameters) -> Judged:
    """Return what the parameters say of a row."""
    doubled = None if seen.doubled is None else utilisation(seen.doubled, parameters)
    return Judged(seen, utilisation(seen.loads, parameters), doubled)


def held_out(rows: Sequence[Observation], convolutions: Sequence[Convolution]) -> List[Judged]:
    """Return every row judged by a calibration fitted without its family."""
    fitted: Dict[str, memory.Parameters] = {}
    for family in sorted({seen.row.family for seen in rows}):
        others = [seen for seen in rows if seen.row.family != family]
        fitted[family] = fit(others, convolutions)
    return [judge(seen, fitted[seen.row.family]) for seen in rows]


def convolution_errors(convolutions: Sequence[Convolution]) -> Any:
    """Return relative errors of non-tensor bytes, each network's by a fit to the other's."""
    errors = []
    for network in sorted({c.network for c in convolutions}):
        parameters = fit([], [c for c in convolutions if c.network != network])
        left = [c for c in convolutions if c.network == network]
        measured = np.array([c.rest for c in left])
        errors.append(np.abs(predicted_rest(left, parameters) / measured - 1))
    return np.concatenate(errors)


def product_errors(parameters: memory.Parameters) -> Any:
    """Return relative errors of the memory of single matrix products, by a given calibration."""
    products = memory_rows.read_products()
    predicted = [p.tensors + single_convolution(1, p.planned, parameters) for p in products]
    return np.abs(np.array(predicted) / np.array([p.measured for p in products]) - 1)


def pair(parameters: memory.Parameters) -> List[float]:
    """Return the use by ResNeXt-50 in float32, 20 images, at proportions of 0.8 and 0.35.

    The first runs out of memory, the second runs: graphcore/examples, ``tutorials/tech_notes_code/
    available_memory/tests/pytorch/test_all.py``.
    """
    with torch.device("meta"):
        network = torchvision.models.resnext50_32x4d().eval()
    images = [torch.empty(20, 3, 224, 224, device="meta")]
    captured = memory.capture(network, images, training=False, precision="32.32")
    layouts = [
        memory.Layout(precision="32.32", optimizer=None, available_memory_proportion=(share,))
        for share in (0.8, 0.35)
    ]
    return [utilisation(ipu_loads(captured, layout), parameters) for layout in layouts]


def table(
    known: List[Judged],
    validation: List[Judged],
    errors: Any,
    products: Any,
    float32: Sequence[float],
) -> List[List[str]]:
    """Return the rows: what, to reach, reached."""
    used = np.array([j.used for j in known])
    maxima = [j for j in known if j.seen.row.is_maximum]
    doubled = np.array([j.doubled for j in maxima], dtype=float)
    published = np.array([j.used for j in validation])

    def share(flags: Any) -> str:
        return f"{100 * np.mean(flags):.1f} % ({int(np.sum(flags))} of {len(flags)})"

    return [
        ["validation: above 100 %", "0", str(int(np.sum(published > 1)))],
        ["validation: median utilisation", "60-85 %", f"{100 * np.median(published):.0f} %"],
        ["held-out family: above 100 %", "<= 6 %", share(used > 1)],
        ["held-out family: above 115 %", "0 %", share(used > memory.HOPELESS)],
        [
            "maxima, held-out family: median utilisation",
            ">= 85 %",
            f"{100 * np.median([j.used for j in maxima]):.1f} %",
        ],
        ["maxima at 2 x micro-batch: above 100 %", ">= 90 %", share(doubled > 1)],
        ["maxima at 2 x micro-batch: above 115 %", ">= 70 %", share(doubled > memory.HOPELESS)],
        [
            "single convolutions, held-out network: median error",
            "<= 9 %",
            f"{100 * np.median(errors):.1f} %",
        ],
        [
            "single convolutions, held-out network: p90 error",
            "<= 30 %",
            f"{100 * np.quantile(errors, 0.9):.1f} %",
        ],
        ["matrix products, nothing fitted: median error", "", f"{100 * np.median(products):.1f} %"],
        [
            "matrix products, nothing fitted: p90 error",
            "",
            f"{100 * np.quantile(products, 0.9):.1f} %",
        ],
        ["ResNeXt-50, float32, proportion 0.8", "> 100 %", f"{100 * float32[0]:.0f} %"],
        ["ResNeXt-50, float32, proportion 0.35", "<= 85 %", f"{100 * float32[1]:.0f} %"],
    ]


def plot(known: List[Judged], validation: List[Judged], path: str) -> None:
    """Draw predicted utilisation by row, grouped by what is known of it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    maxima = [j for j in known if j.seen.row.is_maximum]
    groups = [
        ("published study\n(validation)", [j.used for j in validation], "#4477aa"),
        (
            "shipped\nconfigurations",
            [j.used for j in known if not j.seen.row.is_maximum],
            "#228833",
        ),
        ("largest\nmicro-batch", [j.used for j in maxima], "#ccbb44"),
        ("twice the largest\nmicro-batch", [j.doubled or 0.0 for j in maxima], "#ee6677"),
    ]
    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    generator = np.random.default_rng(0)
    for place, (_, values, colour) in enumerate(groups):
        spread = place + generator.uniform(-0.28, 0.28, len(values))
        axes.scatter(spread, [100 * v for v in values], s=18, color=colour, alpha=0.8)
        middle = 100 * float(np.median(values))
        axes.plot([place - 0.36, place + 0.36], [middle, middle], color="black", linewidth=1.5)
    axes.axhspan(85, 115, color="#bbbbbb", alpha=0.35, label="uncertain: 85-115 %")
    axes.axhline(100, color="black", linewidth=0.8, linestyle="--")
    axes.set_xticks(range(len(groups)))
    axes.set_xticklabels([f"{name}\n{len(values)} rows" for name, values, _ in groups])
    axes.set_ylabel("predicted use of the fullest IPU, %")
    axes.set_ylim(0, None)
    axes.set_title("Configurations that ran on Mk2 IPUs, and (right) twice the largest micro-batch")
    axes.legend(loc="upper left", frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"written: {path}")


def main() -> None:
    """Print the table; draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="PNG", help="draw the predictions of all rows")
    parser.add_argument("--rows", action="store_true", help="print every row")
    arguments = parser.parse_args()
    rows = memory_rows.read_rows()
    reasons = {row.name: memory_rows.reason_unbuildable(row) for row in rows}
    built = [observe(row) for row in rows if reasons[row.name] is None]
    convolutions = memory_rows.read_convolutions()
    shipped = memory.ensemble()[0]
    validation = [judge(seen, shipped) for seen in built if seen.row.is_validation]
    known = held_out([seen for seen in built if not seen.row.is_validation], convolutions)
    errors = convolution_errors(convolutions)
    print(
        f"{len(built)} of {len(rows)} rows built ({len(validation)} validation, {len(known)} "
        f"others, {sum(j.seen.row.is_maximum for j in known)} of them maxima); "
        f"{len(convolutions)} convolutions"
    )
    for name, reason in reasons.items():
        if reason is not None:
            print(f"not built: {name}: {reason}")
    if arguments.rows:
        for judged in (*validation, *known):
            twice = "" if judged.doubled is None else f"  x2 {100 * judged.doubled:4.0f} %"
            print(f"{100 * judged.used:5.0f} %  {judged.seen.row.name}{twice}")
    judged_rows = table(known, validation, errors, product_errors(shipped), pair(shipped))
    for what, target, reached in [["", "to reach", "reached"], *judged_rows]:
        print(f"{what:54s}{target:>10s}  {reached}")
    if arguments.plot:
        plot(known, validation, arguments.plot)


if __name__ == "__main__":
    main()
