"""Memory by prediction as tables, in MiB for readers and in bytes for programs."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from ipu_proxynorm.memory import MIB, TERMS, IpuBudget, Prediction
from ipu_proxynorm.memory.largest import Large, largest_layers, largest_tensors
from ipu_proxynorm.memory.table import term_name
from ipu_proxynorm.prediction.sweep import Sweep, fullest, largest, largest_that_fit

#: A caption and cells, the head first.
Cells = Tuple[str, Sequence[Sequence[str]]]


def sweep_rows(sweeps: Mapping[str, Sweep]) -> List[List[str]]:
    """Return cells: a row a micro-batch, MiB and share of the fullest IPU for each norm."""
    rows = [["micro-batch", *sweeps]]
    for cells in zip(*sweeps.values()):
        shown = [f"{b.used / MIB:,.0f} MiB {b.utilisation:4.0%}" for _, b in cells]
        rows.append([str(cells[0][0]), *shown])
    return rows


def norm_rows(predictions: Mapping[str, Prediction]) -> List[List[str]]:
    """Return the terms of the fullest IPU for each norm, side by side."""
    budgets = [fullest(prediction.ipus) for prediction in predictions.values()]
    rows = [["fullest IPU, MiB", *predictions]]
    rows += [
        [term_name(term), *(f"{budget.terms[term] / MIB:,.0f}" for budget in budgets)]
        for term in TERMS
        if any(budget.terms[term] for budget in budgets)
    ]
    rows.append(["in use", *(f"{budget.used / MIB:,.0f}" for budget in budgets)])
    rows.append(["utilisation", *(f"{budget.utilisation:.0%}" for budget in budgets)])
    return rows


def large_rows(title: str, found: Sequence[Large]) -> List[List[str]]:
    """Return cells of the largest tensors or layers."""
    shapes = ["x".join(map(str, one.shape)) for one in found]
    return [
        [title, "stage", "MiB", "shape" if any(shapes) else ""],
        *(
            [one.name, str(one.stage), f"{one.bytes / MIB:,.1f}", shape]
            for one, shape in zip(found, shapes)
        ),
    ]


def further_tables(
    predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]
) -> List[Cells]:
    """Return what the page has besides each prediction's own table."""
    capture = predictions[next(iter(predictions))].capture
    tables: List[Cells] = [("Norms side by side", norm_rows(predictions))]
    if sweeps:
        caption = f"The fullest IPU by micro-batch; {'; '.join(largest_that_fit(sweeps))}"
        tables.append((caption, sweep_rows(sweeps)))
    layers = large_rows("layer, what is kept of it", largest_layers(capture))
    return [
        *tables,
        ("Largest tensors", large_rows("tensor", largest_tensors(capture))),
        ("Largest layers", layers),
    ]


def all_budgets(
    predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]
) -> List[Tuple[str, int, IpuBudget]]:
    """Return every budget with norm and micro-batch: of all IPUs as given, of the fullest swept."""
    found = [
        (norm, prediction.capture.micro_batch, budget)
        for norm, prediction in predictions.items()
        for budget in prediction.ipus
    ]
    return found + [(norm, at, budget) for norm, points in sweeps.items() for at, budget in points]


def values_of(predictions: Mapping[str, Prediction], sweeps: Mapping[str, Sweep]) -> Dict[str, Any]:
    """Return everything as plain values, bytes."""
    return {
        "predictions": {
            norm: {
                "verdict": dataclasses.asdict(prediction.verdict),
                "micro_batch": prediction.capture.micro_batch,
                "throughput": dataclasses.asdict(prediction.throughput),
                "ipus": [dataclasses.asdict(budget) for budget in prediction.ipus],
                "advice": [str(advice) for advice in prediction.advice],
                "largest_tensors": list(
                    map(dataclasses.asdict, largest_tensors(prediction.capture))
                ),
                "largest_layers": list(map(dataclasses.asdict, largest_layers(prediction.capture))),
            }
            for norm, prediction in predictions.items()
        },
        "sweeps": {
            norm: {
                "largest_that_fits": largest(points),
                "fullest_ipu_bytes": {str(at): budget.used for at, budget in points},
            }
            for norm, points in sweeps.items()
        },
    }


def measured_rows(prediction: Prediction, measured: Sequence[int]) -> List[List[str]]:
    """Return cells of predicted memory and of the compiler's figures, bytes, by IPU."""
    rows = [["MiB", "predicted", "by the compiler", "ratio"]]
    for budget, size in zip(prediction.ipus, measured):
        ratio = f"{budget.used / size:.2f}"
        rows.append([f"IPU {budget.ipu}", f"{budget.used / MIB:,.0f}", f"{size / MIB:,.0f}", ratio])
    return rows
