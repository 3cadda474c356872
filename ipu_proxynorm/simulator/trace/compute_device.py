"""Which torch device computes the simulated programs: the CPU, or what POPTORCH_SIM_DEVICE names.

A model is traced on the CPU. What was recorded then runs on the device: its constants are moved
there, operators that make tensors make them there, and functions of the host get copies.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator

import torch

from ipu_proxynorm.nested import map_tensors

from .._impl import createPoptorchError
from .tape import Block, Branch, Loop, Slot, Step, slots_in

VARIABLE = "POPTORCH_SIM_DEVICE"
HOST = torch.device("cpu")


def chosen() -> torch.device:
    """Return the device that the environment names; the CPU where it names none.

    Raises:
        poptorch.Error: there is no such device, or the simulator does not compute on its kind.

    """
    name = os.environ.get(VARIABLE) or "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise createPoptorchError(
            f"{VARIABLE}={name}: the simulator computes on cpu, cuda or cuda:<number>."
        )
    if device.type == "cpu":
        return HOST
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        seen = f"sees {count} of them" if count else "sees none"
        raise createPoptorchError(
            f"{VARIABLE}={name}: torch {torch.__version__} {seen}; unset {VARIABLE} to compute on "
            "the CPU."
        )
    return torch.device(
        "cuda", torch.cuda.current_device() if device.index is None else device.index
    )


def moved(block: Block, device: torch.device) -> Block:
    """Return a recorded program as it runs on ``device``."""
    if device == HOST:
        return block
    return Block([_moved_step(step, device) for step in block.operations], list(block.results))


def _moved_step(step: Step, device: torch.device) -> Step:
    if isinstance(step, Branch):
        return replace(step, then=moved(step.then, device), otherwise=moved(step.otherwise, device))
    if isinstance(step, Loop):
        return replace(step, body=moved(step.body, device))
    schema = getattr(step.function, "_schema", None)
    if schema is None:
        if getattr(step.function, "runs_anywhere", False):
            return step
        return replace(step, function=_OnHost(step.function, device))
    if all(argument.name != "device" for argument in schema.arguments):
        return step
    makes = not any(True for _ in slots_in((step.args, step.kwargs)))
    if makes or step.kwargs.get("device") is not None:
        return replace(step, kwargs={**step.kwargs, "device": device})
    return step


class _OnHost:
    """Calls a function of the host with copies of the device's tensors, and moves its results."""

    def __init__(self, function: Callable, device: torch.device) -> None:
        self._function = function
        self._device = device
        self.__name__ = getattr(function, "__name__", "")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = _sent((args, kwargs), HOST)
        return _sent(self._function(*args, **kwargs), self._device)


def _sent(tree: Any, device: torch.device) -> Any:
    return map_tensors(lambda tensor: tensor.to(device), tree)


def sent(constants: Dict[Slot, torch.Tensor], device: torch.device) -> Dict[Slot, torch.Tensor]:
    """Return a program's constants on ``device``."""
    return {slot: tensor.to(device) for slot, tensor in constants.items()}


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """Let a GPU round no factor of a float32 product to fewer bits meanwhile, as torch lets it."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul.allow_tf32 = before


def random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the generator that operators draw from on ``device``."""
    return torch.get_rng_state() if device == HOST else torch.cuda.get_rng_state(device)


def set_random_state(state: torch.Tensor, device: torch.device) -> None:
    """Let operators on ``device`` draw from this state on."""
    if device == HOST:
        torch.set_rng_state(state)
    else:
        torch.cuda.set_rng_state(state, device)


def generator_state(seed: int, device: torch.device) -> torch.Tensor:
    """Return the state of a generator on ``device`` that begins with ``seed``."""
    return torch.Generator(device).manual_seed(seed).get_state()
