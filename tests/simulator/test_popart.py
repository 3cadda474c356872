"""``import popart``: the enumerations that PopTorch's options take, and words for the rest."""

from __future__ import annotations

import pytest

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator import popart


def test_members_are_numbers_of_options():
    options = poptorch.Options()
    options._Popart.set("autoRecomputation", int(popart.RecomputationType.Standard))
    options._Popart.set("subgraphCopyingStrategy", int(popart.SubgraphCopyingStrategy.JustInTime))
    options.enableSyntheticData(int(popart.SyntheticDataMode.RandomNormal))
    schedule = popart.AccumulateOuterFragmentSchedule.OverlapMemoryOptimized
    options._Popart.set("accumulateOuterFragmentSettings.schedule", int(schedule))
    assert (int(schedule), schedule.name, schedule.value) == (3, "OverlapMemoryOptimized", 3)


def test_members_are_not_integers_and_may_share_a_value():
    context = popart.BatchSerializationTransformContext
    assert context.Forward is context.Fwd
    assert popart.RecomputationType.Standard != 1
    assert [int(each) for each in popart.RecomputationType] == [0, 1, 2, 3, 4]


def test_other_names_are_refused_in_words():
    with pytest.raises(AttributeError, match=r"popart\.Builder.*not simulated.*SyntheticDataMode"):
        popart.Builder  # noqa: B018
    assert not hasattr(popart, "TrainingSession")
