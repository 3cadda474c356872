"""Comparisons: which runs there are, what is kept of them, and the statistics over seeds."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from ipu_proxynorm.analysis.comparison import (
    DIVERGED,
    DONE,
    UNDEFINED,
    Cell,
    Mean,
    Row,
    plan_cells,
    summarize,
    thin,
)
from ipu_proxynorm.analysis.row_store import RowStore
from ipu_proxynorm.errors import UserError


def row(norm="ln", micro_batch=4, seed=0, accuracy=0.5, **others):
    values = {"loss": 1.0, "seconds_per_step": 0.1, "status": DONE, **others}
    values.setdefault("losses", ((0.5, 2.0), (1.0, accuracy)))
    return Row(norm, micro_batch, seed, (), "abc", accuracy=accuracy, **values)


def test_every_combination_once_and_the_first_seed_first():
    varied = [["training.label_smoothing=0", "training.label_smoothing=0.1"]]
    cells = plan_cells(["bn", "ln+pn"], [1, 8], [3, 4], varied)
    assert len(set(cells)) == len(cells) == 16
    assert {cell.seed for cell in cells[:8]} == {3}
    assert len({cell.name for cell in cells}) == 16
    assert "ln+pn_mb8_label_smoothing=0.1_seed4" in {cell.name for cell in cells}


def test_mean_and_standard_error_as_scipy_has_them():
    values = [0.91, 0.97, 0.94, 0.955]
    found = Mean.of([*values, None])
    assert found == Mean(pytest.approx(np.mean(values)), pytest.approx(stats.sem(values)), 4)
    assert Mean.of([0.5]) == Mean(0.5, None, 1)
    assert Mean.of([None]) is None


def test_summaries_are_over_seeds_only():
    rows = [row(seed=0, accuracy=0.5), row(seed=1, accuracy=0.7), row(norm="bn", accuracy=0.1)]
    broken = {"status": DIVERGED, "reason": "nan", "loss": None, "losses": ((0.1, 9.0),)}
    ln, bn = summarize([*rows, row(micro_batch=4, seed=2, accuracy=0.6, **broken)])
    assert (ln.norm, ln.seeds, ln.diverged) == ("ln", 3, ((2, "nan"),))
    assert ln.accuracy.mean == pytest.approx(0.6)
    assert ln.loss.n == 2
    assert ln.losses == ((0.5, 2.0), (1.0, pytest.approx(0.6)))  # of those that did not diverge
    assert bn.accuracy.error is None


def test_an_undefined_norm_is_told_not_averaged():
    (summary,) = summarize([Row("bn", 1, 0, (), "abc", UNDEFINED, reason="one value")])
    assert (summary.undefined, summary.accuracy, summary.seeds) == ("one value", None, 0)


def test_rows_survive_a_write_that_was_cut_off(tmp_path):
    store = RowStore(tmp_path / "some" / "rows.jsonl")
    assert store.read() == []
    store.add(row(seed=0))
    with store.path.open("a") as stream:
        stream.write('{"norm": "ln", "micro_ba')  # killed here
    assert store.read() == [row(seed=0)]
    store.add(row(seed=1))
    assert store.read() == [row(seed=0), row(seed=1)]
    assert store.read()[1].cell == Cell("ln", 4, 1)


def test_a_line_that_is_no_row(tmp_path):
    store = RowStore(tmp_path / "rows.jsonl")
    store.add(row())
    with store.path.open("a") as stream:
        stream.write("[]\n")
    with pytest.raises(UserError, match="line 2 is not a row of a comparison"):
        store.read()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("norm", ["ln"], "norm is not a text"),
        ("seed", "0", "seed is not a number from 0 up"),
        ("accuracy", "0.5", "accuracy is not a number from 0 to 1 or null"),
        ("accuracy", 50, "accuracy is not a number from 0 to 1 or null"),
        ("loss", float("nan"), "loss is not a number or null"),
        ("status", "fine", "status is not done, diverged or undefined"),
        ("curve", [{"loss": "1"}], "curve is not a list of names and numbers"),
        ("losses", [[1.0]], "losses is not a list of pairs of numbers"),
        ("varied", "seed=1", "varied is not a list of texts"),
    ],
)
def test_a_damaged_figure_of_a_row_is_named(tmp_path, field, value, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**dataclasses.asdict(row()), field: value}) + "\n", "utf-8")
    with pytest.raises(UserError, match=f"line 1 is not a row .*: {words}"):
        RowStore(path).read()


def test_rows_keep_every_figure(tmp_path):
    store = RowStore(tmp_path / "rows.jsonl")
    epoch = {"loss": None, "accuracy": 0.1}
    kept = dataclasses.replace(row(), varied=("training.label_smoothing=0.1",), curve=(epoch,))
    store.add(kept)
    assert store.read() == [kept]


def test_losses_are_thinned_to_means_that_weigh_every_step_once():
    losses = list(np.random.default_rng(0).random(240))
    points = thin(losses, 3)
    assert len(points) == 24
    assert [at for at, _ in points] == pytest.approx(np.linspace(0.125, 3, 24))
    assert [loss for _, loss in points] == pytest.approx(np.reshape(losses, (24, 10)).mean(1))
    assert thin([1.0, float("nan")], 1) == ((0.5, 1.0), (1.0, None))
    assert [at for at, _ in thin([1.0] * 44, 1)][-1] == 1.0
