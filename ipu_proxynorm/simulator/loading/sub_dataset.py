"""One process's part of a data set."""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from .._impl import createPoptorchError
from ..options import Options


class _SubDataset(torch.utils.data.Dataset):
    """A contiguous range of the data set, or of a permutation that all processes share.

    With ``drop_last`` all processes get the same whole number of steps. What does not fill a step
    in all of them is left out at one end in one epoch and at the other end in the next.

    Args:
        dataset: the whole data set.
        options: gives the process and the seed.
        step: elements that one process consumes for each call of the model.
        drop_last: leave out what does not fill a step.

    Raises:
        Error: there is not one step for each process.

    """

    def __init__(self, dataset: Any, options: Options, step: int, drop_last: bool) -> None:
        self._dataset = dataset
        size = len(dataset)
        processes, process = options.Distributed.numProcesses, options.Distributed.processId
        if drop_last:
            self._length = step * (size // (step * processes))
            if self._length == 0:
                raise createPoptorchError(
                    f"The dataset has {size} elements but one step of {processes} processes needs "
                    f"{step * processes}: use a larger dataset or a smaller combined batch."
                )
            start = process * self._length
            # PopTorch's remainder (__init__.py:147): of one process's part, not of all parts. With
            # more left over than that, some elements are never read.
            self._leftovers = size % self._length
        else:
            base, extra = divmod(size, processes)
            self._length = base + (process < extra)
            start = process * base + min(process, extra)
            self._leftovers = 0
        self._seed: Optional[int] = options.random_seed if options.exists("random_seed") else None
        self._generator_state: Optional[Tensor] = None
        # As PopTorch's, not shared: workers that stay alive keep the first epoch's.
        self._offset = start
        self._shifted = False
        # Shared, so that workers which stay alive see a new epoch's.
        self._permutation: Optional[Tensor] = None

    def shuffle_global_indices(self) -> None:
        """Draw the next permutation of the whole data set; the same in every process."""
        generator = torch.Generator()
        if self._generator_state is not None:
            generator.set_state(self._generator_state)
        elif self._seed is not None:
            generator.manual_seed(self._seed)
        else:
            raise AssertionError(
                "Seed must be set when shuffling so that all instances end up with the same "
                "shuffled global indices."
            )
        permutation = torch.randperm(len(self._dataset), generator=generator)
        self._generator_state = generator.get_state()
        if self._permutation is None:
            self._permutation = permutation.share_memory_()
        else:
            self._permutation.copy_(permutation)

    def swap_range(self) -> None:
        """Leave the remainder out at the other end of the data set."""
        self._offset += -self._leftovers if self._shifted else self._leftovers
        self._shifted = not self._shifted

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        position = index + self._offset
        if self._permutation is not None:
            position = int(self._permutation[position])
        return self._dataset[position]
