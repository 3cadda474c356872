"""Group Norm with strided groups: channel c in group c mod G, where a session option asks for it.

PopART hands ``groupNormStridedChannelGrouping`` on to every Group Norm and its gradient
(``popx/op/groupnormx.cpp:73`` and 126). Here channels are permuted into contiguous groups and back.
"""

from __future__ import annotations

from typing import Any, Callable, List, Sequence

import torch

aten = torch.ops.aten

OPTION = "groupNormStridedChannelGrouping"
# Which arguments and results hold channels, and along which dimension.
_ARGUMENTS = {
    aten.native_group_norm.default: ((0, 1), (1, 0), (2, 0)),
    aten.native_group_norm_backward.default: ((0, 1), (1, 1), (4, 0)),
}
_RESULTS = {
    aten.native_group_norm.default: (1, None, None),
    aten.native_group_norm_backward.default: (1, 0, 0),
}

Emit = Callable[[Any, Sequence[Any], Any], Any]
Run = Callable[[Any, List[Any]], Any]


def concerns(function: Any, args: Sequence[Any]) -> bool:
    """Tell whether strided and contiguous groups differ: not for one group or one channel each."""
    if function not in _ARGUMENTS:
        return False
    first = 3 if function is aten.native_group_norm.default else 5
    _, channels, _, groups = args[first : first + 4]
    return bool(1 < groups < channels)


def regrouped(emit: Emit, run: Run, function: Any, args: Sequence[Any]) -> Any:
    """Run a Group Norm, or its gradient, of channels brought into contiguous groups.

    Args:
        emit: takes an operation into the program.
        run: emits the norm itself.
        function: the norm or its gradient.
        args: its arguments.

    Returns:
        its results, their channels in the order of the arguments.

    """
    first = 3 if function is aten.native_group_norm.default else 5
    _, channels, _, groups = args[first : first + 4]

    def permuted(tensor: Any, dim: Any, split: Sequence[int]) -> Any:
        if tensor is None or dim is None:
            return tensor
        shape = list(tensor.shape)
        grid = emit(aten.reshape.default, [tensor, [*shape[:dim], *split, *shape[dim + 1 :]]], {})
        turned = emit(aten.transpose.int, [grid, dim, dim + 1], {})
        return emit(aten.reshape.default, [turned, shape], {})

    given = list(args)
    for position, dim in _ARGUMENTS[function]:
        given[position] = permuted(given[position], dim, [channels // groups, groups])
    results = run(function, given)
    back = [groups, channels // groups]
    return tuple(permuted(result, dim, back) for result, dim in zip(results, _RESULTS[function]))
