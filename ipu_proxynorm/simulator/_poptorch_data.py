"""What is saved beside an exported program, so that a model can be made from it again."""

from __future__ import annotations

import io
import pickle
from typing import Any, Dict, List, Optional

import torch

from . import enums
from .options import Options

# Modules that files of earlier versions name, and where their classes are now.
_MOVED = {
    f"{__package__}._{name}": f"{__package__}.settings.{name}"
    for name in (
        "attribute",
        "execution_strategy",
        "option_groups",
        "optimizer_base",
        "tensor_locations",
    )
}


class _Unpickler(pickle.Unpickler):
    """Finds classes that have moved since a file was written."""

    def find_class(self, module: str, name: str) -> Any:
        """Return the class, from where it is now."""
        return super().find_class(_MOVED.get(module, module), name)


class PoptorchData:
    """Version, inputs and, unless the model was left out, all that a wrapper is made of."""

    def __init__(
        self,
        version: str,
        executable_inputs: Any,
        options: Optional[Options],
        training: Optional[bool] = None,
        model: Optional[torch.nn.Module] = None,
        optimizer: Optional[torch.optim.Optimizer] = None,
        random_seed: Optional[int] = None,
        rng_state: Optional[List[int]] = None,
    ) -> None:
        if not executable_inputs:
            raise AssertionError("The executable's inputs are missing")
        self.version = version
        self.executable_inputs = executable_inputs
        self.options = options
        self.training = training
        self.model = model
        self.optimizer = optimizer
        self.random_seed = random_seed
        self.rng_state = rng_state

    @property
    def optimizer(self) -> Optional[torch.optim.Optimizer]:
        """The optimiser; setting it also takes down its state."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optional[torch.optim.Optimizer]) -> None:
        self._optimizer = optimizer
        self.optimizer_state: Optional[Dict[str, Any]] = (
            None if optimizer is None else optimizer.state_dict()
        )


def parse(serialized_data: bytes, expected_version: str) -> PoptorchData:
    """Read saved data back; an offline target becomes an ordinary one.

    Raises:
        AssertionError: the data come from another version or hold no inputs.

    """
    data = _Unpickler(io.BytesIO(serialized_data)).load()
    if data.version != expected_version:
        raise AssertionError(
            f"PopTorch version mismatch: File was created with version: {data.version} and this "
            f"is version {expected_version}"
        )
    if not data.executable_inputs:
        raise AssertionError("Executable inputs are missing")
    if data.options:
        data.options._unfreeze()
        data.options.deleteIfExists("ipu_version")
        if data.options.connection_type == enums.ConnectionType.Never.value:
            data.options.connectionType(enums.ConnectionType.Always)
    return data
