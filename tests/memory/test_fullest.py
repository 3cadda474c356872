"""The expected size of the fullest moment, against every combination of plans."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from ipu_proxynorm.memory.fullest import expected_maximum, fullest_moment


def test_the_expected_maximum_of_independent_values():
    values = np.sort(np.random.default_rng(0).normal(size=(4, 5)), axis=1)
    every = [max(drawn) for drawn in itertools.product(*values)]
    assert expected_maximum(values) == pytest.approx(np.mean(every))
    assert expected_maximum(values[:1]) == pytest.approx(values[0].mean())
    assert expected_maximum(values) > values.mean(axis=1).max()


def test_moments_of_one_product_have_one_plan():
    live = np.array([10.0, 12.0, 11.0])
    temporaries = np.array([[2.0, 8.0], [1.0, 5.0], [0.0, 9.0]])
    # Of the first product, planned one way or the other, 13 or 18; of the second 11 or 20.
    activations, needed = fullest_moment(live, temporaries, np.array([0, 0, 1]))
    assert activations == 11
    assert activations + needed == pytest.approx((13 + 18 + 20 + 20) / 4)
    # All of one product: one plan, 13 or 20.
    _, needed = fullest_moment(live, temporaries, np.array([0, 0, 0]))
    assert activations + needed == pytest.approx((13 + 20) / 2)


def test_without_products_the_activations_are_all():
    live = np.array([3.0, 7.0, 5.0])
    assert fullest_moment(live, np.zeros((3, 4)), np.zeros(3, dtype=int)) == (7.0, 0.0)
    assert fullest_moment(live[:0], np.zeros((0,)), np.zeros(0, dtype=int)) == (0.0, 0.0)
