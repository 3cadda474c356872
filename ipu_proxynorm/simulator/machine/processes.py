"""The other processes of a distributed run, reached through torch.distributed.

``torchrun`` says in the environment which process this is; gloo carries the tensors.
"""

from __future__ import annotations

import os
from typing import List, Optional, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .._impl import createPoptorchError

_LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def isLaunched() -> bool:
    """Tell whether a launcher such as torchrun started this process."""
    return all(name in os.environ for name in _LAUNCH_VARIABLES)


def environmentInt(name: str, default: int) -> int:
    """Return an integer of the environment.

    Raises:
        Error: it is set but is no integer.

    """
    text = os.environ.get(name)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        raise createPoptorchError(
            f"The environment variable {name} is {text!r} but must be an integer."
        ) from None


def isInitialised() -> bool:
    """Tell whether the processes are connected."""
    return dist.is_available() and dist.is_initialized()


def connect(num_processes: Optional[int] = None) -> None:
    """Connect to the other processes, once.

    Args:
        num_processes: how many there should be; None for as many as were launched.

    Raises:
        Error: nothing was launched, or another number of processes.

    """
    if not isInitialised():
        if not isLaunched():
            raise createPoptorchError(
                f"The run is distributed over {num_processes or 'several'} processes but this one "
                "was not launched together with others: start it with torchrun, or call "
                "options.Distributed.disable()."
            )
        dist.init_process_group("gloo")
    if num_processes is not None and dist.get_world_size() != num_processes:
        raise createPoptorchError(
            f"The options say that there are {num_processes} processes but {dist.get_world_size()} "
            "were launched: pass the launched number to options.Distributed.configureProcessId."
        )


def sumOverProcesses(tensors: Sequence[Tensor], num_processes: int) -> None:
    """Replace tensors by their sum over all processes, in place and in float32 or better.

    Every process passes tensors of the same shapes in the same order.
    """
    if num_processes == 1:
        return
    connect(num_processes)
    wide: List[Tensor] = [
        tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
        for tensor in tensors
    ]
    # One message for all: there is a latency to each.
    for dtype in sorted({tensor.dtype for tensor in wide}, key=str):
        same = [i for i, tensor in enumerate(wide) if tensor.dtype == dtype]
        flat = torch.cat([wide[i].reshape(-1) for i in same]).cpu()  # what gloo carries
        dist.all_reduce(flat)
        parts = flat.split([wide[i].numel() for i in same])
        for i, part in zip(same, parts):
            tensors[i].copy_(part.view_as(tensors[i]))


def gatherOverProcesses(tensor: Tensor, num_processes: int) -> List[Tensor]:
    """Return the tensors of all processes, of one shape and type, in the processes' order."""
    if num_processes == 1:
        return [tensor]
    connect(num_processes)
    sent = tensor.cpu().contiguous()  # what gloo carries
    received = [torch.empty_like(sent) for _ in range(num_processes)]
    dist.all_gather(received, sent)
    return [part.to(tensor.device) for part in received]
