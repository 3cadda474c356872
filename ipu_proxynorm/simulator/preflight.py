"""What PopTorch would say of a program, all of it and not only the first: traced, never run."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, Iterator, List, NamedTuple, Tuple

from . import poptorch_core
from .executor.checks import check_program
from .machine import ipus
from .trace import refusals

if TYPE_CHECKING:
    from ._poplar_executor import PoplarExecutor


class CheckedOperator(NamedTuple):
    """An operator that was held against what PopTorch accepts.

    ``reads`` and ``makes`` spell shapes and types, e.g. ``float16[4, 8]``; ``line`` is
    ``file:line`` of the call in the user's program.
    """

    name: str
    reads: Tuple[str, ...]
    makes: Tuple[str, ...]
    line: str


@dataclass(frozen=True)
class Verdict:
    """What was found of one program.

    Attributes:
        refusals: what PopTorch refuses, in the order of the program.
        operators: the model's own operators; those of the backward pass are PopART's choice.
        complete: whether the program could be traced to its end; otherwise there may be more.
        ipus: how many IPUs it takes, all replicas together; 0 if that could not be told.

    """

    refusals: List[poptorch_core.Error]
    operators: List[CheckedOperator] = field(default_factory=list)
    complete: bool = True
    ipus: int = 0

    @property
    def kinds(self) -> Dict[str, int]:
        """How often each operator occurs, by name, the most frequent first."""
        return dict(Counter(operator.name for operator in self.operators).most_common())


def inspect(executor: PoplarExecutor, *args: Any, **kwargs: Any) -> Verdict:
    """Trace a wrapped model as for compiling, and return what PopTorch would refuse.

    The model computes one micro-batch on the way; nothing is compiled, no IPU is taken.

    Args:
        executor: what ``trainingModel`` or ``inferenceModel`` returned, not compiled yet.
        args: the inputs of one host call.
        kwargs: likewise.

    """
    program = None
    with refusals.collecting() as found, _hardware():
        try:
            program = executor._traced(executor._args_parser(args, kwargs, False))
            check_program(program, executor.options, executor._training)
        except poptorch_core.Error as error:
            found.append(error)
    if program is None:
        return Verdict(found, complete=False)
    operators = [
        CheckedOperator(
            operation.name,
            tuple(map(str, operation.reads.values())),
            tuple(map(str, operation.makes.values())),
            operation.origin.location,
        )
        for operation in program.operations
        if not operation.origin.backward and operation.origin.file
    ]
    needed = ipus.ipus_per_replica(program.placements) * executor.options.replication_factor
    return Verdict(found, operators, ipus=needed)


@contextlib.contextmanager
def _hardware() -> Iterator[None]:
    """Let the machine be one with IPUs meanwhile, whose number must be a power of 2."""
    before = os.environ.get(poptorch_core.HARDWARE)
    os.environ[poptorch_core.HARDWARE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[poptorch_core.HARDWARE]
        else:
            os.environ[poptorch_core.HARDWARE] = before
