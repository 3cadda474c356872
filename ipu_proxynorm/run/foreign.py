"""A module of the user's own, by ``file.py:factory`` or ``package.module:factory``."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Iterator, List, Sequence

import torch
from torch import Tensor, nn

from ipu_proxynorm.config import RunConfig, loads
from ipu_proxynorm.errors import UserError, nearest

#: How such a module is named on a command line.
METAVAR = "FILE.py:FACTORY"
_EXPECTED = "expected file.py:factory or package.module:factory"
# What of a run does not concern a module that is its own.
_RUN = """
name: module
model: {{name: resnet18, norm: none}}
data: {{name: synthetic}}
ipu: {{micro_batch_size: {micro_batch}}}
training: {{epochs: 1}}
"""
_SECTIONS = ("ipu.", "optimizer.")


def names_module(text: str) -> bool:
    """Return whether a word of the command line names a module, rather than a configuration."""
    return ":" in text and not text.endswith((".yaml", ".yml"))


def load_module(text: str) -> nn.Module:
    """Return the module that a factory makes: a function without arguments, or a class; or its own.

    The file is executed, as ``python file.py`` would.

    Raises:
        UserError: there is no such file, package or factory, it fails, or makes no module.
    """
    place, _, name = text.rpartition(":")
    folder = str(Path(place).parent.resolve()) if place.endswith(".py") else os.getcwd()
    with _searching(folder):  # the factory may import what lies beside it, too
        return _made(text, place, name)


def _made(text: str, place: str, name: str) -> nn.Module:
    source = _imported(text, place)
    if not hasattr(source, name):
        known = [n for n, value in vars(source).items() if callable(value) and n[0] != "_"]
        close = nearest(name, known) or known[:3]
        listed = f"; it has {', '.join(close)}" if close else ""
        raise UserError(f"{text}: {place} has no {name!r}{listed}; {_EXPECTED}")
    made = getattr(source, name)
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise UserError(f"{text}: {name} is a {type(made).__name__}; {_EXPECTED}")
        try:
            made = made()
        except Exception as error:
            raise UserError(
                f"{text}: {name}() fails ({_said(error)}); expected a factory without arguments"
            ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"{text}: makes a {type(made).__name__}; expected a torch.nn.Module")
    return made


@contextlib.contextmanager
def _searching(folder: str) -> Iterator[None]:
    """Let Python look for modules in a folder first."""
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _imported(text: str, place: str) -> ModuleType:
    """Return the Python module, from a file or by its name."""
    if place.endswith(".py") and not Path(place).is_file():
        raise UserError(f"{text}: there is no file {place!r}; {_EXPECTED}")
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        return _executed(Path(place))
    except Exception as error:
        raise UserError(f"{text}: {place} cannot be imported ({_said(error)}); {_EXPECTED}") from (
            error
        )


def _executed(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # pickling and dataclasses look it up
    spec.loader.exec_module(module)
    return module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def module_config(
    target: str, model: nn.Module, micro_batch: int, overrides: Sequence[str] = ()
) -> RunConfig:
    """Return a configuration around a module, of which ``ipu`` and ``optimizer`` alone count.

    Raises:
        UserError: an override is of something else, or wrong.
    """
    for override in overrides:
        if override.startswith("ipu.micro_batch_size") or not override.startswith(_SECTIONS):
            raise UserError(
                f"override {override!r}: of a module only ipu.* and optimizer.* count, and its "
                f"micro-batch is the first size of --input"
            )
    config = loads(_RUN.format(micro_batch=micro_batch), overrides, target)
    named = dataclasses.replace(config.model, name=type(model).__name__)
    return dataclasses.replace(config, name=target.rpartition(":")[2], model=named)


def parse_inputs(target: str, texts: Sequence[str]) -> List[Tensor]:
    """Return inputs of one micro-batch, without values, of ``4x3x224x224`` or ``8x128:int64``.

    Raises:
        UserError: there is none; one is no shape, or of no type of torch's.
    """
    if not texts:
        raise UserError(f"{target}: --input is missing: expected a shape, e.g. --input 4x3x224x224")
    return [_parse_input(text) for text in texts]


def _parse_input(text: str) -> Tensor:
    shape, _, name = text.partition(":")
    sizes = shape.split("x")
    dtype = getattr(torch, name or "float32", None)
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or not isinstance(
        dtype, torch.dtype
    ):
        raise UserError(
            f"--input {text}: expected sizes, the micro-batch first, and a type unless it is "
            f"float32, e.g. 4x3x224x224 or 8x128:int64"
        )
    return torch.empty([int(size) for size in sizes], dtype=dtype, device="meta")
