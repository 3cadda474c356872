"""What PopTorch 3.4 would refuse of every recipe, in every precision, with every norm.

    python benchmarks/preflight_recipes.py [--jobs N] [--only WORD] [--precision P]

Each program is the recipe's with few blocks of each kind and small images, as ``train --smoke`` has
it; replicas, gradient accumulation and device iterations are the recipe's. Programs that are the
same for several recipes are traced once.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import sys
import warnings
from collections import Counter
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

os.environ.setdefault("IPU_PROXYNORM_BACKEND", "simulator")

from ipu_proxynorm.config import RunConfig, load
from ipu_proxynorm.config.shipped import recipes
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.prediction.preflight import preflight_run
from ipu_proxynorm.training.smoke import smaller

PRECISIONS = ("16.16", "16.32", "32.32")
NORMS = ("bn", "in", "ln", "gn4", "ln+pn", "gn4+pn", "none", "gn4+pn+ws")
KEPT = ("replication_factor", "gradient_accumulation", "device_iterations")


class Case(NamedTuple):
    """A recipe with another precision and norm."""

    recipe: str
    precision: str
    norm: str


class Outcome(NamedTuple):
    """What became of a program: refusals, or why there is no such program, or operators by kind."""

    refused: List[str]
    unbuilt: str = ""
    operators: int = 0
    kinds: int = 0


def configured(case: Case) -> RunConfig:
    """Return the case's small run, with the recipe's own counts.

    Raises:
        UserError: there is no such run: the groups do not divide the channels, for one.
    """
    changes = [f"model.norm={case.norm}", f"ipu.precision={case.precision}"]
    if case.precision == "32.32":
        changes.append("ipu.half_partials=false")
    config = load(case.recipe, changes)
    small = smaller(config)
    counts = {key: getattr(config.ipu, key) for key in KEPT}
    return dataclasses.replace(small, ipu=dataclasses.replace(small.ipu, **counts))


def identity(config: RunConfig) -> str:
    """Return what two runs with the same programs have in common."""
    data = (config.data.name, config.data.image_size)
    training = dataclasses.replace(config.training, epochs=1)
    return repr((config.model, config.ipu, config.optimizer, data, training))


def traced(config: RunConfig) -> Outcome:
    """Return what PopTorch would say of a run's programs."""
    warnings.simplefilter("ignore")
    try:
        found = preflight_run(config, memory=False, shallow=True)
    except UserError as error:
        return Outcome([], str(error))
    kinds: Counter = Counter()
    for flight in found.flights:
        kinds.update(flight.kinds)
    return Outcome(found.refused, "", sum(kinds.values()), len(kinds))


def sweep(jobs: int, only: str, precisions: Sequence[str]) -> Dict[Case, Outcome]:
    """Return the outcome of every case."""
    keys: Dict[Case, str] = {}
    programs: Dict[str, RunConfig] = {}
    outcomes: Dict[Case, Outcome] = {}
    for path in recipes():
        for precision in precisions:
            for norm in NORMS:
                case = Case(str(path), precision, norm)
                if only not in path.name:
                    continue
                try:
                    config = configured(case)
                except UserError as error:
                    outcomes[case] = Outcome([], str(error))
                    continue
                keys[case] = identity(config)
                programs.setdefault(keys[case], config)
    print(f"{len(keys)} cases, {len(programs)} programs", file=sys.stderr)
    found: Dict[str, Outcome] = {}
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        results = pool.imap(traced, programs.values())
        for number, (key, outcome) in enumerate(zip(programs, results), 1):
            found[key] = outcome
            if number % 50 == 0 or outcome.refused:
                print(f"{number}: {outcome}", file=sys.stderr, flush=True)
    outcomes.update({case: found[key] for case, key in keys.items()})
    return outcomes


def cell(outcomes: List[Outcome]) -> str:
    """Return how many of these are accepted, refused, and cannot be built."""
    unbuilt = sum(bool(o.unbuilt) for o in outcomes)
    refused = sum(bool(o.refused) for o in outcomes)
    accepted = len(outcomes) - unbuilt - refused
    return f"{accepted} / {refused} / {unbuilt}"


def grouped(texts: List[Tuple[str, str]]) -> List[str]:
    """Return a line for each text, with how often it occurs and where first."""
    first: Dict[str, str] = {}
    counts: Counter = Counter()
    for text, where in texts:
        first.setdefault(text, where)
        counts[text] += 1
    return [f"- {number} (first: {first[text]}): {text}" for text, number in counts.most_common()]


def page(outcomes: Dict[Case, Outcome]) -> str:
    """Return the page of the documentation."""
    names = {case.recipe for case in outcomes}
    all_of = list(outcomes.values())
    built = [o for o in all_of if not o.unbuilt]
    lines = [
        "# Recipes, precisions, norms: what PopTorch would refuse",
        "",
        f"`python benchmarks/preflight_recipes.py`: {len(names)} recipes x {len(PRECISIONS)} "
        f"precisions x {len(NORMS)} norms, training and validation program of each, held against "
        "the simulator's list of operators and its table of refusals (see "
        "[The simulator](simulator.md)). Networks have few blocks of each kind and see small "
        "images; options and counts are the recipe's, but for `ipu.half_partials`, which is off in "
        "32.32. Nothing of this has run on an IPU.",
        "",
        f"{len(all_of)} cases: {sum(not o.refused for o in built)} accepted, "
        f"{sum(bool(o.refused) for o in built)} refused, {len(all_of) - len(built)} are no "
        f"configuration.",
        "",
        "Accepted / refused / no configuration:",
        "",
        "| norm | " + " | ".join(PRECISIONS) + " |",
        "|---" * (len(PRECISIONS) + 1) + "|",
    ]
    for norm in NORMS:
        cells = [
            cell([o for case, o in outcomes.items() if (case.norm, case.precision) == (norm, p)])
            for p in PRECISIONS
        ]
        lines.append(f"| {norm} | " + " | ".join(cells) + " |")

    def place(case: Case) -> str:
        return f"{os.path.basename(case.recipe)}, {case.norm}, {case.precision}"

    refused = [(text, place(case)) for case, o in outcomes.items() for text in o.refused]
    unbuilt = [(o.unbuilt, place(case)) for case, o in outcomes.items() if o.unbuilt]
    if refused:
        lines += ["", "## Refused", "", *grouped(refused)]
    if unbuilt:
        lines += ["", "## No configuration", "", *grouped(unbuilt)]
    return "\n".join(lines) + "\n"


def main(arguments: Optional[List[str]] = None) -> int:
    """Print the page; 1 if anything is refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="processes; default: 1")
    parser.add_argument("--only", default="", metavar="WORD", help="recipes with WORD in the name")
    parser.add_argument("--precision", choices=PRECISIONS, help="one of them only")
    given = parser.parse_args(arguments)
    precisions = PRECISIONS if given.precision is None else (given.precision,)
    outcomes = sweep(given.jobs, given.only, precisions)
    print(page(outcomes), end="")
    return 1 if any(outcome.refused for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
