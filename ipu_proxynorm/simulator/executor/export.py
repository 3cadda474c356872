"""Files that hold a compiled program: what is needed to compile it again, and who wrote it."""

from __future__ import annotations

import os
import pickle
from typing import Any, List, Optional

import torch

from .. import _args_parser, _impl
from .._logging import logger
from .._poptorch_data import PoptorchData, parse
from ..device.device import Device
from ..options import Options

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


class Exporting:
    """The part of a wrapped model that writes and reads files."""

    rng_state: List[int]
    _executable_inputs: Optional[_args_parser.Args]
    _options: Options
    _poptorch_version: str
    _training: bool
    _user_model: Any

    @property
    def _optimizer(self) -> Optional[torch.optim.Optimizer]:
        raise NotImplementedError

    def _compiled(self) -> Device:
        raise NotImplementedError

    def _compile(self, inputs: _args_parser.Args) -> None:
        raise NotImplementedError

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the model for these inputs, unless it is compiled already."""
        raise NotImplementedError

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Write the compiled model to a file, or into a folder.

        Args:
            filename: the file or folder.
            export_model: with the model, so that ``poptorch.load`` can restore it; otherwise only
                ``loadExecutable`` of a model made anew can use the file.
            save_rng_state: with the state of the random number generators.

        Raises:
            poptorch.Error: not compiled.

        """
        self._compiled()
        data = PoptorchData(self._poptorch_version, self._executable_inputs, self._options)
        if save_rng_state:
            data.rng_state = self.rng_state
        if export_model:
            data.model, data.training = self._user_model, self._training
            data.optimizer = self._optimizer
        write(data, filename)

    def compileAndExport(
        self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any
    ) -> None:
        """Compile for these inputs and write the result to a file, as ``save`` does."""
        self.compile(*args, **kwargs)
        self.save(filename, export_model)

    def loadExecutable(self, filename: str) -> None:
        """Compile as the model in a file was, with this model's weights.

        Raises:
            poptorch.Error: the file was not written by this version of the simulator.

        """
        data = read_inputs(filename, self._poptorch_version)
        self._compile(data.executable_inputs)
