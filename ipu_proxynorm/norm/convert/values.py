"""Values that are changed in place, or as a whole: told from what they were, and put back."""

from __future__ import annotations

import copy
import random
from typing import Any, Callable, Iterator, List, Optional, Tuple

import numpy as np
import torch
from torch import Tensor, nn

# Whether it is another one now; puts it back.
Pair = Tuple[Callable[[], bool], Callable[[], None]]


class Draws:
    """torch's, Python's and NumPy's random states as they stand now."""

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        self._python = random.getstate()
        self._numpy = np.random.get_state()  # noqa: NPY002 (whatever a forward draws from)
        used = torch.cuda.is_available() and torch.cuda.is_initialized()
        self._cuda = torch.cuda.get_rng_state_all() if used else []

    def moved(self) -> Iterator[str]:
        """Yield whose random numbers were drawn since then."""
        if not torch.equal(self._torch, torch.get_rng_state()) or any(
            not torch.equal(old, new) for old, new in zip(self._cuda, self._now_cuda())
        ):
            yield "torch"
        if self._python != random.getstate():
            yield "random"
        now = np.random.get_state()  # noqa: NPY002 (whatever a forward draws from)
        if now[2:] != self._numpy[2:] or not np.array_equal(now[1], self._numpy[1]):  # type: ignore[index]
            yield "numpy.random"

    def _now_cuda(self) -> List[Tensor]:
        return torch.cuda.get_rng_state_all() if self._cuda else []

    def put_back(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self._torch)
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)


def tensor_pair(tensor: Tensor) -> Optional[Pair]:
    """Of a tensor; None: of one without values of its own here."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.device.type == "meta":
        return None
    if nn.parameter.is_lazy(tensor) or tensor.layout != torch.strided:  # type: ignore[no-untyped-call]
        return None
    saved = tensor.detach().clone()

    def differs() -> bool:
        now = tensor.detach()
        if now.shape != saved.shape or now.dtype != saved.dtype:
            return True
        return not torch.equal(now, saved) and not bool(((now == saved) | (now != now)).all())

    def put_back() -> None:
        if differs():  # .data: the backward pass of somebody's graph may have saved it
            tensor.data = tensor.data.resize_(saved.shape).copy_(saved)

    return differs, put_back


def array_pair(array: np.ndarray[Any, Any]) -> Pair:
    """Of a NumPy array."""
    saved = array.copy()

    def put_back() -> None:
        if array.flags.writeable:
            array[...] = saved

    return lambda: not np.array_equal(array, saved), put_back


def generator_pair(generator: Any) -> Pair:
    """Of a random generator of Python's or NumPy's old kind."""
    get, put = (
        (generator.getstate, generator.setstate)
        if isinstance(generator, random.Random)
        else (generator.get_state, generator.set_state)
    )
    saved = get()
    return lambda: repr(get()) != repr(saved), lambda: put(saved)


def bits_pair(bits: Any) -> Pair:
    """Of the bit generator within NumPy's new kind."""
    saved = copy.deepcopy(bits.state)

    def put_back() -> None:
        bits.state = saved

    return lambda: repr(bits.state) != repr(saved), put_back


def torch_generator_pair(generator: torch.Generator) -> Pair:
    """Of a random generator of torch."""
    saved = generator.get_state()

    def put_back() -> None:
        generator.set_state(saved)

    return lambda: not torch.equal(generator.get_state(), saved), put_back


def cache_pair(function: Any) -> Pair:
    """Of a function that keeps its results: what it kept since cannot be told from the rest."""
    saved = function.cache_info().misses

    def put_back() -> None:
        if function.cache_info().misses != saved:
            function.cache_clear()

    return lambda: function.cache_info().misses != saved, put_back
