"""The largest micro-batch that fits."""

from ipu_proxynorm.memory import IpuBudget
from ipu_proxynorm.prediction.sweep import largest


def test_the_largest_is_the_last_before_the_first_that_does_not_fit():
    budgets = [(at, IpuBudget(0, (0,), {"code": size}, {}, 100)) for at, size in
               ((1, 40), (2, 85), (3, 86), (4, 60))]  # fmt: skip
    assert largest(budgets) == 2
    assert largest(budgets[2:]) is None
