"""The weights' two copies, the host's and the device's: which is newer, and how to copy them."""

from __future__ import annotations

from typing import Any, Dict, Iterable, Tuple

import torch

from .._logging import logger
from ..device.device import Device
from ..trace import model_state


class WeightsLink:
    """The weights of one wrapped model.

    Args:
        model: on the host; it may be a function, which has none.

    """

    def __init__(self, model: Any) -> None:
        self._model = model
        #: The device has been training since the host's copy was made.
        self.are_stale = False
        #: How often the host's copy has been renewed.
        self.version = 0

    def _tensors(self) -> Tuple[Dict[str, torch.Tensor], Dict[str, torch.Tensor]]:
        if not isinstance(self._model, torch.nn.Module):
            return {}, {}
        return model_state.variables(self._model)

    def parameters(self) -> Dict[str, torch.Tensor]:
        """Return the host's parameters by name."""
        return self._tensors()[0]

    def fetch(self, device: Device) -> None:
        """Write the device's weights into the host's."""
        self.are_stale = False  # first: writing is a look at the weights, too
        logger.info("Writing weights from IPU to host.")
        device.store(*self._tensors())
        self.version += 1

    def upload(self, device: Device) -> None:
        """Write the host's weights to the device."""
        self.are_stale = False
        logger.info("Writing weights from host to IPU memory.")
        device.load(*self._tensors())

    def upload_buffers(self, device: Device, names: Iterable[str]) -> None:
        """Write these of the host's buffers to the device."""
        self.are_stale = False
        buffers = self._tensors()[1]
        device.load({}, {name: buffers[name] for name in names})
