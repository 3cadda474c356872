"""PopTorch 3.4's Python API on a CPU: the module that stands in for ``poptorch``."""

from __future__ import annotations

import copy
import importlib.util
from typing import Callable, Optional, Union

import torch

from . import _logging, ops, optim, options, poptorch_core, profiling, testing
from ._dataloader import DataLoader, _batch_sampler_len  # noqa: F401 (a name of PopTorch's)
from ._impl import createPoptorchError, isRunningOnIpu
from ._logging import logger
from ._poplar_executor import PoplarExecutor
from ._printing import module_repr, print
from ._utils import ICustomArgParser, registerCustomArgParser
from .alias import names as _names
from .enums import *  # noqa: F403
from .executor import wrapping
from .executor.export import read as _read_export
from .executor.hooks import registerPostCompileHook, registerPreCompileHook
from .loading.data_accessor import AsynchronousDataAccessor
from .loading.sub_dataset import _SubDataset  # noqa: F401 (a name of PopTorch's)
from .operations.custom_op import registerCustomOp
from .ops import *  # noqa: F403
from .options import *  # noqa: F403
from .poptorch_core import Error, RecoverableError, UnrecoverableError

__all__ = [
    *ops.__all__,
    *options.__all__,
    "AsynchronousDataAccessor",
    "DataLoader",
    "Error",
    "ICustomArgParser",
    "PoplarExecutor",
    "RecoverableError",
    "UnrecoverableError",
    "createPoptorchError",
    "inferenceModel",
    "ipuHardwareIsAvailable",
    "ipuHardwareVersion",
    "isRunningOnIpu",
    "load",
    "logger",
    "module_repr",
    "optim",
    "print",
    "profiling",
    "registerCustomArgParser",
    "registerCustomOp",
    "registerPostCompileHook",
    "registerPreCompileHook",
    "setLogLevel",
    "testing",
    "trainingModel",
]

__version__ = "3.4.0-simulated"


def trainingModel(
    model: Union[torch.nn.Module, PoplarExecutor],
    options: Optional[Options] = None,  # noqa: F405
    optimizer: Optional[torch.optim.Optimizer] = None,
) -> PoplarExecutor:
    """Wrap a model for training.

    Args:
        model: returns the loss among its outputs; its class changes in place, until ``destroy``.
        options: how to compile and run it.
        optimizer: torch's or PopTorch's; SGD at a learning rate of 0.01 if None.

    Raises:
        RuntimeError: the model is wrapped already.

    """
    if isinstance(model, PoplarExecutor):
        model = model._user_model
    if wrapping.is_wrapped(model):
        raise RuntimeError(
            "Model has already been wrapped in 'poptorch.trainingModel'. Call model.destroy() on "
            "the model to unwrap before wrapping again."
        )
    return PoplarExecutor(
        model=copy.copy(model),
        options=options,
        training=True,
        optimizer=optimizer,
        user_model=model,
        poptorch_version=__version__,
    )


def inferenceModel(
    model: Union[torch.nn.Module, PoplarExecutor],
    options: Optional[Options] = None,  # noqa: F405
) -> PoplarExecutor:
    """Wrap a model for inference; it shares the weights with the model, and with its training."""
    if isinstance(model, PoplarExecutor):
        model = model._user_model
    return PoplarExecutor(
        model=copy.copy(model), options=options, training=False, poptorch_version=__version__
    )


def load(
    filename: str,
    edit_opts_fn: Optional[Callable[[Options], None]] = None,  # noqa: F405
) -> PoplarExecutor:
    """Load a model that ``compileAndExport`` or ``save`` has written.

    Args:
        filename: the file.
        edit_opts_fn: may change the options before the model is made.

    Raises:
        AssertionError: the file is invalid, or was written without the model.

    """
    data = _read_export(filename, __version__)
    assert data.model is not None, (
        f"{filename} is a valid PopTorch file but was created with 'export_model=False' which "
        "means you need to re-create the PopTorch model using poptorch.inferenceModel or "
        f'poptorch.trainingModel then call poptorch_model.loadExecutable("{filename}").'
    )
    if edit_opts_fn:
        edit_opts_fn(data.options)  # type: ignore[arg-type]
    if data.optimizer is not None and data.optimizer_state is not None:
        data.optimizer.load_state_dict(data.optimizer_state)
    made_for = {"optimizer": data.optimizer} if data.training else {}
    wrap: Callable[..., PoplarExecutor] = trainingModel if data.training else inferenceModel
    executor = wrap(data.model, data.options, **made_for)
    executor.loadExecutable(filename)
    if data.rng_state is not None:
        executor.rng_state = data.rng_state
    return executor


def ipuHardwareIsAvailable(num_ipus: int = 1) -> bool:
    """Tell whether the machine has this many IPUs; see ``POPTORCH_SIM_HARDWARE``."""
    return poptorch_core.ipuHardwareVersion(num_ipus) != 0


def ipuHardwareVersion() -> int:
    """Return the version of the machine's IPUs.

    Raises:
        AssertionError: it has none.

    """
    version = poptorch_core.ipuHardwareVersion()
    assert version != 0, "No IPU hardware available on this system"
    return version


def setLogLevel(level: Union[str, int]) -> None:
    """Set how much is logged: "TRACE", "DEBUG", "INFO", "WARN", "ERR" or "OFF".

    Raises:
        ValueError: another level.

    """
    _logging.setLogLevel(level)


def poptorchAtExit() -> None:
    """Do nothing: the simulator holds nothing that has to be given up at exit."""
    poptorch_core.poptorchAtExit()


_real_tensor_str = torch._tensor_str._tensor_str


def _tensor_str(self: torch.Tensor, indent: int) -> str:
    # torch's own is left alone: the trace answers for the device's tensors.
    return "<unavailable>" if self.device.type == "ipu" else _real_tensor_str(self, indent)


def registerGeometricCustomArgParsers() -> None:
    """Register the argument parsers of ``poptorch_geometric``, where that is installed."""
    if importlib.util.find_spec("poptorch_geometric") is None:
        return
    try:
        importlib.import_module("poptorch_geometric.types").registerCustomArgParsers()
    except (ImportError, AttributeError) as error:  # as PopTorch: who needs it will see
        logger.debug("poptorch_geometric's argument parsers are not registered: %s", error)


registerGeometricCustomArgParsers()

__getattr__ = _names.getter(__name__)
