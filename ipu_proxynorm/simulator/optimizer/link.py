"""Keeps the host's optimiser and the device's in step: who is newer, and when it is copied."""

from __future__ import annotations

from types import MethodType
from typing import Any, Callable, Dict, Mapping, Optional

import torch

from .. import _optimizer_attributes
from .._logging import logger
from ..machine.replica_groups import ReplicaGroups
from ..optim import Optimizer
from ..options import Options
from .device_optimizer import DeviceOptimizer


class OptimizerLink:
    """The optimiser of one training model.

    Args:
        options: the model's options.
        host_parameters: returns the host's parameters by name.

    """

    def __init__(
        self, options: Options, host_parameters: Callable[[], Mapping[str, torch.Tensor]]
    ) -> None:
        # torch's or PopTorch's: the latter keeps state on the device.
        self.optimizer: Any = None
        self.device_optimizer: Optional[DeviceOptimizer] = None
        self._options = options
        self._host_parameters = host_parameters
        self._tracker = _optimizer_attributes.OptimizerAttrTracker(options)
        self._attributes: Dict[str, Any] = {}
        self._changed = False
        self._groups: Dict[str, ReplicaGroups] = {}

    def set(self, optimizer: Any, is_compiled: bool) -> None:
        """Make this the optimiser; its attributes reach the device with the next `upload`."""
        if is_compiled and optimizer is not self.optimizer:
            self._release()
            if isinstance(optimizer, Optimizer):
                optimizer.ipu_state_is_dirty = True
        if isinstance(optimizer, Optimizer):
            # Reading the state fetches it from the device first.
            linked: Any = optimizer
            linked.state_dict = MethodType(_LinkedState(self), optimizer)
        self.optimizer = optimizer
        attributes = _optimizer_attributes.convertOptimizerToDict(
            optimizer, self._tracker, self._options, is_compiled
        )
        if attributes != self._attributes:
            self._attributes = attributes
            self._changed = True

    def _release(self) -> None:
        """Fetch the present optimiser's state a last time, and leave it alone from then on."""
        if isinstance(self.optimizer, Optimizer):
            self.fetch()
            released: Any = self.optimizer
            released.state_dict = released.get_state_dict

    def _counts_in_groups(self, key: str) -> bool:
        """Tell whether a state is a number for each group of replicas."""
        return key.split("___")[0] == "Step" and key.split("___")[1] in self._groups

    def _for_each_group(self, state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        """Give numbers kept for a per-replica parameter the dimension of the groups, too."""
        return {
            key: tensor.expand(self._groups[key.split("___")[1]].number).clone()
            if self._counts_in_groups(key)
            else tensor
            for key, tensor in state.items()
        }

    def create(
        self, device_parameters: Mapping[str, torch.Tensor], groups: Dict[str, ReplicaGroups]
    ) -> DeviceOptimizer:
        """Create the device's optimiser for a program just compiled.

        Args:
            device_parameters: by name, those of several groups of replicas with these in front.
            groups: the groups of the parameters that differ between replicas.

        """
        self._groups = groups
        assert self.optimizer is not None
        self.device_optimizer = DeviceOptimizer(
            self.optimizer,
            device_parameters,
            self._options,
            self._attributes,
            self._host_parameters(),
        )
        self._changed = False
        return self.device_optimizer

    def destroy(self) -> None:
        """Forget the device's optimiser, its state fetched."""
        self.fetch()
        self.device_optimizer = None

    def upload_attributes(self) -> None:
        """Put changed attributes into force on the device."""
        if self._changed and self.device_optimizer is not None:
            assert self.optimizer is not None
            self.device_optimizer.update(self.optimizer, self._attributes)
            self._changed = False

    def attached(self) -> None:
        """Restore the state that the host holds, after attaching to a device."""
        self.upload_attributes()
        if not isinstance(self.optimizer, Optimizer):
            return
        if self.optimizer.has_state():
            self.optimizer.ipu_state_is_dirty = True
            self.upload_state()
        else:
            self.optimizer.host_state_is_dirty = True
            self.optimizer.ipu_state_is_dirty = False

    def upload_state(self) -> None:
        """Write the host's state to the device if it is the newer one."""
        if not isinstance(self.optimizer, Optimizer) or not self.optimizer.ipu_state_is_dirty:
            return
        if self.optimizer.has_state() and self.device_optimizer is not None:
            state = self.optimizer.get_state_dict()
            loaded = {
                key: tensor[0] if self._counts_in_groups(key) else tensor
                for key, tensor in state["ipu_state"].items()
            }
            logger.info("Writing optimiser state tensors from host to IPU memory.")
            self.device_optimizer.load(loaded, state["ipu_param"])
        self.optimizer.ipu_state_is_dirty = False

    def stepped(self) -> None:
        """Note that the device has updated its state."""
        if isinstance(self.optimizer, Optimizer):
            self.optimizer.host_state_is_dirty = True

    def fetch(self) -> None:
        """Read the device's state if it is the newer one."""
        optimizer = self.optimizer
        if not isinstance(optimizer, Optimizer) or self.device_optimizer is None:
            return
        if not optimizer.host_state_is_dirty:
            logger.debug("Using cached optimiser state dict")
            return
        logger.info("Writing optimiser state tensors from IPU to host.")
        optimizer.set_state_dict({
            "ipu_state": self._for_each_group(self.device_optimizer.ipu_state()),
            "ipu_param": self.device_optimizer.ipu_param(),
            **torch.optim.Optimizer.state_dict(self.optimizer),
        })  # fmt: skip
        optimizer.ipu_state_is_dirty = False


class _LinkedState:
    """``state_dict`` of an optimiser whose state is on a device."""

    def __init__(self, link: OptimizerLink) -> None:
        self._link = link
        self.__name__ = "state_dict"

    def __call__(self, optimizer: Optimizer) -> Dict[str, Any]:
        self._link.fetch()
        return optimizer.get_state_dict()
