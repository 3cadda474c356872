"""A prediction in words and as a table of plain text: terms by IPU, verdict, advice."""

from __future__ import annotations

from typing import List, Sequence

from ipu_proxynorm.chip import MIB
from ipu_proxynorm.memory.budget import TERMS
from ipu_proxynorm.memory.predict import Prediction
from ipu_proxynorm.memory.throughput import Throughput


def term_name(term: str) -> str:
    """Return a term of a budget in words."""
    return term.replace("_", " ").replace("optimizer", "optimiser").replace("io ", "I/O ")


def shown_terms(prediction: Prediction) -> List[str]:
    """Return the terms that take something on any IPU."""
    return [term for term in TERMS if any(ipu.terms[term] for ipu in prediction.ipus)]


def sentence(prediction: Prediction) -> str:
    """Return the verdict in a sentence."""
    verdict = prediction.verdict
    return (
        f"{verdict.name}: IPU {verdict.ipu} is the fullest, at {verdict.utilisation:.0%} of its "
        f"memory ({verdict.low:.0%} to {verdict.high:.0%} by what published configurations allow)"
    )


def speed(found: Throughput) -> str:
    """Return the predicted images per second in a sentence."""
    waiting = f"; the pipeline's filling takes {found.waiting:.0%}" if found.waiting else ""
    return (
        f"about {found.images_per_second:,.0f} images/s of all replicas ({found.low:,.0f} to "
        f"{found.high:,.0f}), limited by {found.limit}{waiting}"
    )


def rows(prediction: Prediction) -> List[List[str]]:
    """Return the table's cells: a row a term, a column an IPU, MiB; the first row is the head."""
    ipus = prediction.ipus
    table = [["MiB", *(f"IPU {ipu.ipu}" for ipu in ipus)]]
    table += [
        [term_name(term), *(f"{ipu.terms[term] / MIB:,.0f}" for ipu in ipus)]
        for term in shown_terms(prediction)
    ]
    table.append(["in use", *(f"{ipu.used / MIB:,.0f}" for ipu in ipus)])
    table.append(["capacity", *(f"{ipu.capacity / MIB:,.0f}" for ipu in ipus)])
    table.append(["utilisation", *(f"{ipu.utilisation:.0%}" for ipu in ipus)])
    return table


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Return cells as lines of text: the first column to the left, others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in table
    )


def describe(prediction: Prediction) -> str:
    """Return the verdict, the images per second, the table and the advice."""
    advice = [f"- {advice}" for advice in prediction.advice]
    lines = [sentence(prediction), speed(prediction.throughput), aligned(rows(prediction))]
    return "\n".join([*lines, *advice])
