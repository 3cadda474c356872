"""What PopTorch's optimisers have in common: attributes that may change, state on the device."""

from __future__ import annotations

from typing import Any, Dict, List, Sequence

import torch

_ACCUMULATION_TYPES = (torch.float16, torch.float32)


class VariableAttributes:
    """Which attributes of an optimiser may change after compiling; the others are constants."""

    def __init__(self, variable_attributes: List[str], allowed_attributes: List[str]) -> None:
        self._variable_attributes = variable_attributes
        self._allowed_attributes = allowed_attributes

    def isConstant(self, attr: str) -> bool:
        """Whether the attribute is compiled into the program."""
        return attr not in self._variable_attributes

    def _checkKnown(self, attr: str) -> None:
        if attr not in self._allowed_attributes:
            raise AssertionError(
                f"Unknown attribute {attr}, allowed values: {self._allowed_attributes}"
            )

    def markAsConstant(self, attr: str) -> None:
        """Compile the attribute into the program."""
        self._checkKnown(attr)
        self._variable_attributes = [a for a in self._variable_attributes if a != attr]

    def markAsVariable(self, attr: str) -> None:
        """Let the attribute change after compiling."""
        self._checkKnown(attr)
        self._variable_attributes.append(attr)


class Optimizer:
    """What PopTorch's optimisers have in common: their state lives on the device.

    ``state_dict`` holds torch's keys and ``ipu_state`` and ``ipu_param``, the device's tensors,
    both None before a model that uses the optimiser has compiled.
    """

    # Attributes of the optimiser that torch's does not have and that may change after compiling.
    _child_vars: Sequence[str] = ("loss_scaling",)
    # All attributes that torch's optimiser does not have.
    _child_only: Sequence[str] = ()
    # Attributes that each parameter group may set.
    _group_vars: Sequence[str] = ()

    defaults: Dict[str, Any]
    param_groups: List[Dict[str, Any]]
    state: Any  # torch's: a dictionary by parameter

    def __init__(self) -> None:
        self._state_dict: Dict[str, Any] = {"ipu_state": None, "ipu_param": None}
        # The host's state is newer than the device's, and the other way round.
        self.ipu_state_is_dirty = False
        self.host_state_is_dirty = False

    # A model replaces these two on the instance, so that they reach its device.
    def state_dict(self) -> Dict[str, Any]:
        """Return torch's state and the device's."""
        return self.get_state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over a state that came from a device.

        Raises:
            RuntimeError: the state is empty or has no device state.

        """
        torch.optim.Optimizer.load_state_dict(self, state)  # type: ignore[arg-type]
        self.set_state_dict(state)

    def get_state_dict(self) -> Dict[str, Any]:
        """Return the state as the host knows it."""
        return {**self._state_dict, **torch.optim.Optimizer.state_dict(self)}  # type: ignore[arg-type]

    def set_state_dict(self, state: Dict[str, Any]) -> None:
        """Replace the host's copy of the device's state, to be uploaded before the next run."""
        if not state:
            raise RuntimeError("Cannot load optimizer state dictionary because it is empty.")
        if not ("ipu_state" in state and "ipu_param" in state):
            raise RuntimeError("Only IPU optimizer states can be loaded onto the IPU.")
        self._state_dict = state
        self.ipu_state_is_dirty = True
        self.host_state_is_dirty = False

    def has_state(self) -> bool:
        """Whether the host holds a device state."""
        return (
            self._state_dict.get("ipu_state") is not None
            and self._state_dict.get("ipu_param") is not None
        )

    def __getstate__(self) -> Dict[str, Any]:
        # torch keeps groups and its own state. Hooks of models and schedulers on this instance stay
        # behind, and a copy's state is not on any device yet.
        state = {
            "defaults": self.defaults,
            "state": self.state,
            "param_groups": self.param_groups,
        }
        own = (*self._child_only, "max_weight_norm", "variable_attrs", "_state_dict")
        state.update({name: self.__dict__[name] for name in own if name in self.__dict__})
        state["ipu_state_is_dirty"] = self.has_state()
        state["host_state_is_dirty"] = False
        return state

    def _setAttributes(self, given: Dict[str, Any], defaults: Dict[str, Any]) -> None:
        """Store the attributes of ``defaults``, as given or by default, and check type names."""
        for name, default in defaults.items():
            value = default if given[name] is None else given[name]
            if name.endswith("accum_type") and value not in _ACCUMULATION_TYPES:
                raise AssertionError(
                    "Accumulation types must be either torch.float32 or torch.float16 but "
                    f"{name} is {value}"
                )
            setattr(self, name, value)

    def _trackVariables(self, given: Dict[str, Any]) -> None:
        """Attributes that the caller gave are variable, those left out constant."""
        self.variable_attrs = VariableAttributes(
            [name for name, value in given.items() if value is not None],
            [*self.defaults, *self._child_vars],
        )

    @classmethod
    def _parentArgs(cls, given: Dict[str, Any]) -> Dict[str, Any]:
        """Arguments for torch's constructor: those that were given and that it knows."""
        return {k: v for k, v in given.items() if v is not None and k not in cls._child_only}


def arguments_of(arguments: Dict[str, Any]) -> Dict[str, Any]:
    """Return a constructor's ``locals()`` without ``self`` and the class cell."""
    return {k: v for k, v in arguments.items() if k not in ("self", "__class__")}
