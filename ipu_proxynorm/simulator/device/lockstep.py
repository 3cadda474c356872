"""Replicas that exchange values: each runs to its next collective, then all go on together."""

from __future__ import annotations

from typing import Any, Callable, ContextManager, Generator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .._impl import createPoptorchError
from ..machine.exchange import Collective
from ..machine.processes import gatherOverProcesses

_Request = Tuple[Collective, Tensor]
_Run = Generator[_Request, Tensor, List[Tensor]]


def run_together(
    runs: Sequence[_Run],
    stream: Callable[[int], ContextManager[Any]],
    process: int,
    processes: int,
) -> List[List[Tensor]]:
    """Run one micro-batch on every replica of this process and return each one's results.

    Args:
        runs: a program's run on each replica, begun.
        stream: the random stream of a replica, to be active while it runs.
        process: this process's number.
        processes: how many processes there are; all of them take part in each exchange.

    Raises:
        poptorch.Error: the replicas do not come to the same collective.

    """
    results: List[Optional[List[Tensor]]] = [None] * len(runs)
    answers: List[Optional[Tensor]] = [None] * len(runs)
    while True:
        requests: List[_Request] = []
        for replica, run in enumerate(runs):
            with stream(replica):
                try:
                    requests.append(run.send(answers[replica]))  # type: ignore[arg-type]
                except StopIteration as end:
                    results[replica] = end.value
        if not requests:
            return [result for result in results if result is not None]
        collective = requests[0][0]
        if len(requests) < len(runs) or any(other is not collective for other, _ in requests):
            raise createPoptorchError(
                "Replicas come to different collectives, and would wait for one another for ever: "
                "a poptorch.cond whose condition differs between replicas must not hold one."
            )
        own = torch.stack([tensor for _, tensor in requests])
        every = torch.cat(gatherOverProcesses(own, processes))
        first = process * len(runs)
        answers = list(collective.exchange(list(every))[first : first + len(runs)])
