"""Functions that run on the host in the middle of a model."""

from __future__ import annotations

from typing import Any, Callable, List, Sequence

import torch

from .._impl import createPoptorchError
from ..trace import tracing
from ..trace.consistency import Traced
from ..trace.recorder import active


class _HostFunction:
    """Calls the user's function at run time, outside the device's program."""

    has_effect = True

    def __init__(self, function: Callable, name: str) -> None:
        self._function = function
        self.__name__ = name
        self._traced: List[Traced] = []

    def record(self, *tensors: torch.Tensor) -> List[torch.Tensor]:
        """Call the function while the program is recorded: its results must stay of a kind."""
        results = self._results(tensors)
        self._traced = [Traced.of(tensor) for tensor in results]
        return results

    def _results(self, tensors: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        result = self._function(*tensors)
        results = result if isinstance(result, (list, tuple)) else [result]
        return [tensor.detach().clone() for tensor in results]

    def __call__(self, *tensors: torch.Tensor) -> List[torch.Tensor]:
        """Call the function.

        Raises:
            poptorch.Error: what it returns is of another kind than when the model was compiled.

        """
        results = self._results(tensors)
        found = [Traced.of(tensor) for tensor in results]
        if found != self._traced:
            raise createPoptorchError(
                f"poptorch.CPU: {self.__name__} returns {', '.join(map(str, found))}, but "
                f"{', '.join(map(str, self._traced))} when the model was compiled: shapes and "
                "types are fixed then."
            )
        return results


class CPU:
    """Runs a function on the host's CPU within a model, in inference only.

    Args:
        layer_to_call: gets CPU tensors and returns one, or several.
        ID: name of the operation.

    """

    def __init__(self, layer_to_call: Callable, ID: str) -> None:
        if isinstance(layer_to_call, torch.nn.Module):
            layer_to_call.requires_grad_(False)
        self._layer_to_call = layer_to_call
        self._ID = ID

    def __call__(self, *inputs: torch.Tensor, **kwargs: Any) -> Any:
        """Call the function; returns what it returns.

        Raises:
            poptorch.Error: the model is trained.

        """
        tracing.check_inference("CPU", "do it before the model, in the data loader")
        recorder = active()
        if recorder is None:
            return self._layer_to_call(*inputs, **kwargs)
        single: List[bool] = []

        def function(*tensors: torch.Tensor) -> Any:
            result = self._layer_to_call(*tensors, **kwargs)
            single.append(not isinstance(result, (list, tuple)))
            return result

        host_function = _HostFunction(function, self._ID)
        outputs = recorder.emit(host_function, [recorder.constant(t) for t in inputs], {})
        return outputs[0] if single[0] else outputs
