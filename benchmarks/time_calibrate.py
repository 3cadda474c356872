"""Fits the cycle model's speeds to measured times; writes the package's ``speeds.json``.

    python benchmarks/time_calibrate.py [--members 24]

Each kind of operator is fitted to the single operators of its kind that the Poplar compiler
reported. Five numbers have no single operator to be fitted to: what an elementwise operator costs
(to start, with exchange and without, and by the byte), what float16 partials save, and what an
all-reduce makes of the link. They are fitted to the measured programs of
``data/ipu_throughput.csv``, each family of networks counting as one. The 30 published EfficientNets
are not fitted to. Each member of the ensemble sees the rows drawn anew with replacement and a prior
moved at random.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from scipy.optimize import least_squares
from time_rows import Operator, Program, read_operators, read_programs

from ipu_proxynorm import memory
from ipu_proxynorm.memory.cycles import Speeds

OUTPUT = pathlib.Path(memory.__file__).parent / "data" / "speeds.json"

#: The numbers that each kind of single operators fixes.
FITTED_TO: Dict[str, Tuple[str, ...]] = {
    "convolution": ("product_start", "product_mac", "product_element", "product_weight"),
    "depthwise": ("depthwise_start", "depthwise_element"),
    "matmul": (
        "matmul_start",
        "matmul_compute",
        "matmul_adding",
        "matmul_rearranging",
        "matmul_rearranged",
        "matmul_accumulating",
        "matmul_accumulated",
        "exchange_bytes",
        "exchange_sharing",
    ),
    "pooling": ("pool_start", "pool_read", "pool_written"),
    "reduction": ("reduction_start", "reduction_single", "reduction_byte"),
}

# How far, in logarithms, a number may lie from the default of `Speeds`: those of products come from
# poplibs' own estimates, or are starts of the size of other operators'.
LOOSE = 1.5
DEVIATIONS: Dict[str, float] = {
    "matmul_start": 0.4,
    "matmul_compute": 0.2,
    "matmul_adding": 0.5,
    "matmul_rearranging": 0.5,
    "matmul_rearranged": 0.4,
    "matmul_accumulating": 0.4,
    "matmul_accumulated": 0.4,
    "exchange_bytes": 0.15,
    "exchange_sharing": 0.15,
}

# The others: where they lie before any program is seen, and the logarithm's standard deviation.
# start: as a reduction's; local_start: what is left of a reduction of one step when the difference
# between two steps and one is taken off (1,468 - 1,140 cycles); byte: 16 bytes loaded and 8 stored
# a cycle at best, an eighth of that with exchange and rearrangement;
# half_partials: twice the rate of float32 partials at best (poplibs, ``Target``);
# link_efficiency: a ring over two links, each step with its latency.
PRIOR: Dict[str, Tuple[float, float]] = {
    "start": (2000.0, 0.4),
    "local_start": (330.0, 0.4),
    "byte": (0.35, 0.5),
    "half_partials": (0.5, 0.15),
    "link_efficiency": (0.4, 0.5),
}


def kind_of(operator: Operator) -> str:
    """Return the kind of operators that fixes the numbers of this one."""
    return "matmul" if operator.kind == "dense layer" else operator.kind


def fit_operators(
    operators: Sequence[Operator],
    kinds: Optional[Sequence[str]] = None,
    generator: Optional[np.random.Generator] = None,
) -> Speeds:
    """Return speeds fitted to single operators, the default's where a kind has none."""
    speed = Speeds()
    for kind, names in FITTED_TO.items():
        if kinds is not None and kind not in kinds:
            continue
        rows = [operator for operator in operators if kind_of(operator) == kind]
        if not rows:
            continue
        if generator is not None:
            rows = [rows[i] for i in generator.integers(len(rows), size=len(rows))]
        start = np.log([getattr(Speeds(), name) for name in names])
        deviations = np.array([DEVIATIONS.get(name, LOOSE) for name in names])
        if generator is not None:
            start = start + generator.normal(scale=0.1, size=len(names))

        def residuals(
            logs: Any,
            names: Tuple[str, ...] = names,
            rows: Sequence[Operator] = rows,
            start: Any = start,
            deviations: Any = deviations,
        ) -> Any:
            tried = dataclasses.replace(Speeds(), **dict(zip(names, np.exp(logs).tolist())))
            errors = [np.log(row.predicted(tried) / row.measured) / 0.1 for row in rows]
            return np.concatenate([errors, (logs - start) / deviations])

        found = least_squares(residuals, start, loss="soft_l1", max_nfev=200)
        speed = dataclasses.replace(speed, **dict(zip(names, np.exp(found.x).tolist())))
    return speed


def fit_programs(
    speed: Speeds,
    programs: Sequence[Program],
    generator: Optional[np.random.Generator] = None,
) -> Speeds:
    """Return speeds whose remaining numbers are fitted to whole programs, families equal."""
    names = tuple(PRIOR)
    centre = np.zeros(len(names))
    deviations = np.array([PRIOR[name][1] for name in names])
    chosen = list(programs)
    if generator is not None:
        centre = generator.normal(size=len(names)) * deviations / 2
        chosen = [programs[i] for i in generator.integers(len(programs), size=len(programs))]
    counts: Dict[str, int] = {}
    for program in chosen:
        counts[program.family] = counts.get(program.family, 0) + 1

    def changed(logs: Any) -> Speeds:
        values = {name: PRIOR[name][0] * float(np.exp(x)) for name, x in zip(names, logs)}
        return dataclasses.replace(speed, **values)

    def residuals(logs: Any) -> Any:
        tried = changed(logs)
        errors = [
            np.log(p.predicted(tried) / p.measured) / 0.08 / np.sqrt(counts[p.family])
            for p in chosen
        ]
        return np.concatenate([errors, (logs - centre) / deviations])

    found = least_squares(residuals, centre, diff_step=1e-2, max_nfev=15)
    return changed(found.x)


def fit(
    operators: Sequence[Operator],
    programs: Sequence[Program],
    generator: Optional[np.random.Generator] = None,
) -> Speeds:
    """Return the best speeds; with a generator, those of a random member of the ensemble."""
    return fit_programs(fit_operators(operators, generator=generator), programs, generator)


def main() -> None:
    """Fit and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", type=int, default=24)
    arguments = parser.parse_args()
    operators, programs = read_operators(), read_programs()
    generator = np.random.default_rng(0)
    members: List[Speeds] = [fit(operators, programs)]
    members += [fit(operators, programs, generator) for _ in range(arguments.members)]
    entries = [
        {name: float(f"{value:.4g}") for name, value in dataclasses.asdict(member).items()}
        for member in members
    ]
    OUTPUT.write_text(json.dumps({"ensemble": entries}, indent=1) + "\n")
    print(f"{OUTPUT}: {len(entries)} members; the central one:")
    for name, value in entries[0].items():
        print(f"  {name:20s}{value:.4g}")


if __name__ == "__main__":
    main()
