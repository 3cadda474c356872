"""How good the time model is, against single operators and programs that were measured.

    python benchmarks/throughput_accuracy.py [--plot docs/figures/throughput_accuracy.png] [--rows]
    python benchmarks/throughput_accuracy.py --coverage

Nothing is judged by a fit that has seen it: single operators by one to the other groups of their
kind (networks, row counts, strides), programs by one to the other families of networks. The 30
published EfficientNets are judged by the speeds that the package ships, which no row of theirs is
fitted to; their own family is in that fit with three rows of another layout and chip. They are
predicted as the programs that were measured (``study_program.py``), which are not our recipes'.
"""

from __future__ import annotations

import argparse
import re
from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from time_calibrate import fit, fit_operators, fit_programs, kind_of
from time_rows import (
    Operator,
    Program,
    our_study,
    published_study,
    read_operators,
    read_programs,
)

from ipu_proxynorm.memory.cycles import Speeds, speeds
from ipu_proxynorm.memory.throughput import interval

Judged = List[Tuple[str, float, float]]  # name, measured, predicted


def judge_operators(operators: Sequence[Operator]) -> Dict[str, Judged]:
    """Return by kind every operator, predicted by a fit without its group."""
    found: Dict[str, Judged] = {}
    for kind in sorted({kind_of(o) for o in operators}):
        own = [o for o in operators if kind_of(o) == kind]
        groups = sorted({o.group for o in own})
        for group in groups:
            others = [o for o in own if o.group != group]
            # A group by itself: the two chips judge each other.
            pairs = [(others, [o for o in own if o.group == group])]
            if not others:
                chips = ("mk1", "mk2")
                pairs = [
                    ([o for o in own if o.chip != chip], [o for o in own if o.chip == chip])
                    for chip in chips
                ]
            for seen, left in pairs:
                speed = fit_operators(seen, [kind])
                for o in left:
                    name = f"{o.name} {o.chip}"
                    found.setdefault(o.kind, []).append((name, o.measured, o.predicted(speed)))
    return found


def judge_programs(programs: Sequence[Program], operators: Sequence[Operator]) -> Judged:
    """Return every program, predicted by a fit without its family."""
    base = fit_operators(operators)
    found: Judged = []
    for family in sorted({p.family for p in programs}):
        speed = fit_programs(base, [p for p in programs if p.family != family])
        found += [(p.name, p.measured, p.predicted(speed)) for p in programs if p.family == family]
    return found


def coverage(
    programs: Sequence[Program], operators: Sequence[Operator], study: Sequence[Program]
) -> List[str]:
    """Return how many intervals hold what was measured.

    Those of the programs are of ensembles that saw no program of their family, each of as many
    members as the shipped one; those of the study of the shipped ensemble.
    """
    found = [0, 0]
    for family in sorted({p.family for p in programs}):
        others = [p for p in programs if p.family != family]
        generator = np.random.default_rng(0)
        members = [fit(operators, others)]
        members += [fit(operators, others, generator) for _ in speeds()[1:]]
        found[0] += sum(_holds(p, members) for p in programs if p.family == family)
    found[1] = sum(_holds(p, speeds()) for p in study)
    return [
        f"programs, family not seen: {found[0]} of {len(programs)} within their interval",
        f"published study: {found[1]} of {len(study)} within their interval",
    ]


def _holds(program: Program, members: Sequence[Speeds]) -> bool:
    low, high = interval([program.predicted(member) for member in members])
    return low <= program.measured <= high


def judge_study(study: Sequence[Program]) -> Judged:
    """Return the 30 published EfficientNets, predicted by the shipped speeds."""
    speed = speeds()[0]
    return [(p.name, p.measured, p.predicted(speed)) for p in study]


def errors(judged: Judged) -> Any:
    """Return relative errors."""
    return np.array([abs(predicted / measured - 1) for _, measured, predicted in judged])


def factors(judged: Judged) -> Any:
    """Return by what factor each prediction is off, at least 1."""
    ratios = np.array([predicted / measured for _, measured, predicted in judged])
    return np.exp(np.abs(np.log(ratios)))


def proxy_ratios(study: Judged) -> Tuple[Any, Any]:
    """Return measured and predicted images/s of LN+PN over Group Norm's, pair by pair."""
    by_name = {name: (measured, predicted) for name, measured, predicted in study}
    pairs = [
        (by_name[name], by_name[re.sub("_ln_pn_", "_gn_", name)])
        for name in by_name
        if "_ln_pn_" in name
    ]
    ratios = np.array([[ln[i] / gn[i] for i in (0, 1)] for ln, gn in pairs])
    return ratios[:, 0], ratios[:, 1]


def table(
    by_kind: Dict[str, Judged], programs: Judged, study: Judged, ours: Judged
) -> List[List[str]]:
    """Return the rows: what, to reach, reached; ``ours`` is the study as our recipes run it."""
    every = [row for rows in by_kind.values() for row in rows]
    rows = []
    for kind, judged in [*by_kind.items(), ("all kinds", every)]:
        off = errors(judged)
        to_reach = "<= 8 / <= 35 %" if kind == "all kinds" else ""
        reached = f"{100 * np.median(off):.1f} / {100 * np.quantile(off, 0.9):.1f} %"
        rows.append([f"cycles, {kind} ({len(judged)}): median / p90 error", to_reach, reached])
    for name, judged in (("programs, family not seen", programs), ("published study", study)):
        off = factors(judged)
        ratio = np.median([predicted / measured for _, measured, predicted in judged])
        rows.append(
            [
                f"images/s, {name} ({len(judged)}): typical factor; worst; predicted/measured",
                "<= 1.15; <= 1.5",
                f"{np.median(off):.2f}; {off.max():.2f}; {ratio:.2f}",
            ]
        )
    for name, judged in (("", study), (", our recipes", ours)):
        measured, predicted = proxy_ratios(judged)
        rows.append(
            [
                f"LN+PN / GN images/s{name}: measured; predicted; correlation over pairs",
                "0.86-0.92; >= 0.5",
                f"{np.median(measured):.3f}; {np.median(predicted):.3f}; "
                f"{np.corrcoef(measured, predicted)[0, 1]:.2f}",
            ]
        )
    return rows


def plot(by_kind: Dict[str, Judged], programs: Judged, study: Judged, path: str) -> None:
    """Draw predicted against measured, operators on the left and programs on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = ["#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#777777"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5))
    groups = [*by_kind.items()]
    whole = [("programs, family not seen", programs), ("published study (not fitted to)", study)]
    for axes, shown, unit in ((left, groups, "cycles"), (right, whole, "images/s")):
        every = [value for _, rows in shown for _, *values in rows for value in values]
        ends = np.array([min(every) / 1.3, max(every) * 1.3])
        axes.plot(ends, ends, color="black", linewidth=0.8)
        axes.fill_between(ends, ends / 1.3, ends * 1.3, color="#bbbbbb", alpha=0.35, linewidth=0)
        for (name, rows), colour in zip(shown, colours):
            _, measured, predicted = zip(*rows)
            axes.scatter(measured, predicted, s=18, color=colour, alpha=0.8, label=name)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set_xlabel(f"measured {unit}")
        axes.set_ylabel(f"predicted {unit}")
        axes.legend(frameon=False, fontsize=8)
    left.set_title("Single operators, group not seen (grey: a factor of 1.3)")
    right.set_title("Whole programs")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    print(f"written: {path}")


def main() -> None:
    """Print the table; draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="PNG", help="draw predicted against measured")
    parser.add_argument("--rows", action="store_true", help="print every program")
    parser.add_argument(
        "--coverage", action="store_true", help="count the intervals that hold (takes minutes)"
    )
    arguments = parser.parse_args()
    operators = read_operators()
    if arguments.coverage:
        print("\n".join(coverage(read_programs(), operators, published_study())))
        return
    by_kind = judge_operators(operators)
    programs = judge_programs(read_programs(), operators)
    study, ours = judge_study(published_study()), judge_study(our_study())
    if arguments.rows:
        print(
            "| program | measured images/s | predicted | predicted / measured |\n|---|---|---|---|"
        )
        for name, measured, predicted in [*programs, *study]:
            print(f"| {name} | {measured:,.0f} | {predicted:,.0f} | {predicted / measured:.2f} |")
        print()
    print("| | to reach | reached |\n|---|---|---|")
    for what, target, reached in table(by_kind, programs, study, ours):
        print(f"| {what} | {target} | {reached} |")
    if arguments.plot:
        plot(by_kind, programs, study, arguments.plot)


if __name__ == "__main__":
    main()
