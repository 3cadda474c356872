"""What PopTorch 3.4's handlers refuse by argument: the table, by family, and its check."""

from __future__ import annotations

from .check import check_function, check_operator, check_unread
from .facts import ProgramFacts
from .table import ROWS, UNREAD_RESULTS

__all__ = [
    "ROWS",
    "UNREAD_RESULTS",
    "ProgramFacts",
    "check_function",
    "check_operator",
    "check_unread",
]
