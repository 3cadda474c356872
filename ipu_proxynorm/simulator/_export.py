"""Files that hold a compiled program: what is needed to compile it again, and who wrote it."""

from __future__ import annotations

import os
import pickle

from . import _impl
from ._logging import logger
from ._poptorch_data import PoptorchData, parse

_MAGIC = b"SIMULATED-POPTORCH\n"


def write(data: PoptorchData, filename: str) -> None:
    """Write a program to a file, or as ``model.poptorch`` into a folder."""
    folder = os.path.dirname(filename)
    if folder:
        os.makedirs(folder, exist_ok=True)
    if os.path.isdir(filename):
        folder, filename = filename, os.path.join(filename, "model.poptorch")
        logger.warning("save(): %s is a directory, saving model to %s", folder, filename)
    serialized = pickle.dumps(data, protocol=4)
    with open(filename, "wb") as file:
        file.write(_MAGIC + serialized)


def read(filename: str, version: str) -> PoptorchData:
    """Read a program back.

    Raises:
        AssertionError: the file is none of ours, or of another version.

    """
    with open(filename, "rb") as file:
        content = file.read()
    if not content.startswith(_MAGIC):
        raise AssertionError(
            f"Invalid file {filename}: not written by compileAndExport() or save() of this "
            "simulator"
        )
    try:
        return parse(content[len(_MAGIC) :], version)
    except AssertionError as error:
        raise AssertionError(f"Invalid file {filename}: {error}") from error


def read_inputs(filename: str, version: str) -> PoptorchData:
    """Read a program back for a model that exists already.

    Raises:
        poptorch.Error: the file is none of ours, or of another version.

    """
    try:
        return read(filename, version)
    except AssertionError as error:
        raise _impl.createPoptorchError(str(error)) from error
