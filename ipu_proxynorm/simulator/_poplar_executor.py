"""A wrapped model: compiles at its first call, runs on the device, keeps weights in step."""

from __future__ import annotations

import datetime
import sys
import time
from typing import Any, Callable, Dict, List, Mapping, Optional

import torch

from . import _args_parser, _impl, _printing, _utils, enums, optim
from ._logging import logger
from .alias import names
from .device import batching
from .device.device import Device
from .executor import hooks, wrapping
from .executor.checks import check_machine, check_optimizer, check_program, own_options
from .executor.export import Exporting
from .executor.hooks import (  # noqa: F401 (names of PopTorch's)
    _registerHook,
    registerPostCompileHook,
    registerPreCompileHook,
)
from .executor.inspection import Inspection
from .executor.substitutions import _OverwriteContextManager, _SetDefaultDeviceType  # noqa: F401
from .executor.weights_link import WeightsLink
from .machine import ipus
from .machine.replica_groups import GroupedParameter, Grouping, ReplicaGroups
from .optimizer.link import OptimizerLink
from .options import Options
from .trace import compute_device
from .trace.program import Program, compile_program, warn_of_required_gradients

NO_EXECUTABLE_ERR = "Model has not been compiled or has been destroyed."

_BACKWARD_ERR = (
    "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a "
    "trainingModel, the backwards pass is performed automatically when invoking the model. If "
    "you're using an inferenceModel, you should use a trainingModel instead."
)


def _refuse_backward() -> None:
    raise _impl.createPoptorchError(_BACKWARD_ERR)


class PoplarExecutor(Inspection, Exporting):
    """A model made by ``trainingModel`` or ``inferenceModel``.

    Args:
        model: the user's model.
        options: how to compile and run it; frozen from now on.
        training: train it, with ``optimizer``, rather than only run it.
        poptorch_version: written to exported files.
        optimizer: plain SGD at a learning rate of 0.01 if None.
        user_model: the model that shares the weights, if it is another object.

    Raises:
        poptorch.Error: options of another type, or gradient accumulation without training.

    """

    def __init__(
        self,
        model: Any,
        options: Optional[Options],
        training: bool,
        poptorch_version: str,
        optimizer: Optional[torch.optim.Optimizer] = None,
        user_model: Optional[Any] = None,
    ) -> None:
        self._options = own_options(options, training)
        self._training = training
        self._poptorch_version = poptorch_version
        self._user_model = model if user_model is None else user_model
        # Looks at this one's weights fetch nothing from the device.
        same = user_model is None
        self._model = wrapping.plain_view(model) if same else wrapping.plain_copy(model)
        self._args_parser = _args_parser.ArgsParser(self._model)
        self._device: Optional[Device] = None
        self._is_attached = False
        self._executable_inputs: Optional[_args_parser.Args] = None
        self._weights = WeightsLink(self._model)
        self._weights_version = 0  # of the training model's that an inference model has taken over
        self._rng_state: Optional[List[int]] = None
        self._compilation_time: Optional[datetime.timedelta] = None
        self.per_replica_params: Dict[str, Grouping] = {}
        self._link: Optional[OptimizerLink] = None
        if training:
            self._link = OptimizerLink(self._options, self._weights.parameters)
            self.setOptimizer(optimizer or optim.SGD(self._user_model.parameters(), lr=0.01))
        self._options._freeze()
        if training:
            wrapping.wrap(self._user_model, self)

    # ---- the model as an object ---------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The user's model."""
        return self._user_model

    @property
    def options(self) -> Options:
        """The options, frozen."""
        return self._options

    @property
    def _optimizer(self) -> Optional[torch.optim.Optimizer]:
        return None if self._link is None else self._link.optimizer

    def __repr__(self) -> str:
        return _printing.module_repr(self._user_model)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_user_model" not in self.__dict__:
            raise AttributeError(name)
        value = getattr(self._user_model, name)
        if isinstance(value, torch.nn.Parameter):
            return GroupedParameter(self.per_replica_params, name, value)
        return value

    def __getstate__(self) -> Dict[str, Any]:
        if self.isCompiled():
            raise _impl.createPoptorchError(
                "A compiled model cannot be pickled. Save the model itself or its state_dict(), "
                "use compileAndExport() or save(), or call destroy() first."
            )
        return self.__dict__

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._training:
            wrapping.wrap(self._user_model, self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Load weights into the model, and onto the device if it is attached."""
        result = self._user_model.load_state_dict(state_dict, strict)
        if self.isAttachedToDevice():
            logger.debug("load_state_dict: implicit copyWeightsToDevice()")
            self.copyWeightsToDevice()
        return result

    # ---- compiling ----------------------------------------------------------------------------

    @property
    def _executable(self) -> Optional[Device]:
        """What PopTorch names so: other people's programs ask whether it is None."""
        return self._device

    def isCompiled(self) -> bool:
        """Tell whether there is a program for the device."""
        return self._device is not None

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile the model for these inputs, unless it is compiled already."""
        inputs = self._args_parser(args, kwargs, False)
        if self.isCompiled():
            logger.warning("Call to compile() ignored: the executable is already compiled")
        else:
            self._compile(inputs)

    def _traced(self, inputs: _args_parser.Args) -> Program:
        """Return the program that the model is for these inputs of a host call."""
        layout = batching.BatchLayout.of(self._options)
        micro_batch = warn_of_required_gradients(inputs)
        for tensor in micro_batch.asPackedFlatTuple():
            layout.check(tensor)
        first = batching.Position(0, 0, 0)
        micro_batch.forEach(lambda tensor: layout.micro_batch(tensor, first))
        groups = self._replica_groups()

        def view(name: str, tensor: torch.Tensor) -> torch.Tensor:
            return tensor[0] if name in groups else tensor

        device = compute_device.chosen()
        return compile_program(
            self._model, micro_batch, self._options, self._training, view, device
        )

    def _compile(self, inputs: _args_parser.Args) -> None:
        started = time.perf_counter()
        if self._optimizer is not None and isinstance(self._model, torch.nn.Module):
            check_optimizer(self._model, self._optimizer)
        with _OverwriteContextManager():
            hooks.before_compiling()
            try:
                program = self._traced(inputs)
            finally:
                hooks.after_compiling()
        check_machine(self._options)
        check_program(program, self._options, self._training)
        groups = self._replica_groups()
        if self._options.connection_type != enums.ConnectionType.Never:
            ipus.attach(self._options)
            self._is_attached = True
        logger.debug("Setting random seed to: %d", self._seed())
        self._device = Device(program, self._options, groups, self._seed())
        self._executable_inputs = inputs
        self._weights.upload(self._device)
        if self._link is not None:
            with torch.inference_mode(False):
                self._device.optimizer = self._link.create(self._device.parameters, groups)
        self._compilation_time = datetime.timedelta(seconds=time.perf_counter() - started)
        if self._is_attached:
            self._on_attach()

    def _replica_groups(self) -> Dict[str, ReplicaGroups]:
        parameters = self._weights.parameters()
        groups = {}
        for name, (kind, shards, _) in self.per_replica_params.items():
            groups[name] = ReplicaGroups.make(kind, shards, self._options.replication_factor)
            groups[name].check(name, parameters[name])
        return groups

    def _seed(self) -> int:
        if self._options.exists("random_seed"):
            return self._options.random_seed
        return torch.initial_seed()

    def _compiled(self) -> Device:
        if self._device is None:
            raise _impl.createPoptorchError(NO_EXECUTABLE_ERR)
        return self._device

    def destroy(self) -> None:
        """Give up program and device; the model keeps the trained weights."""
        if self._device is None:
            return
        if self._training:
            self.copyWeightsToHostIfNeeded()
            assert self._link is not None
            self._link.destroy()
        if self._is_attached:
            ipus.detach(self._options)
            self._is_attached = False
        self._device = None
        if self._training:
            wrapping.unwrap(self._user_model)

    def __del__(self, is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # The weights outlive whoever trained them; at the end of Python even `sys` may be gone.
        if self.__dict__.get("_is_attached") and not is_finalizing():
            self.copyWeightsToHostIfNeeded()
            ipus.detach(self._options)

    # ---- running ------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on a combined batch; the first call compiles it.

        Raises:
            AssertionError: the target is offline, or the batch does not split.
            poptorch.Error: inputs other than those it was compiled for.

        """
        assert self._options.connection_type != enums.ConnectionType.Never, (
            "Trying to run a model on an offline device (ConnectionType.Never): use "
            "model.compile(inputs) instead of model(inputs)"
        )
        inputs = self._args_parser(args, kwargs, self.isCompiled())
        if not self.isCompiled():
            self._compile(inputs)
        if not self._is_attached:
            self.attachToDevice()
        if not self._training:
            self._refresh_from_training()
        device = self._compiled()
        assert self._executable_inputs is not None
        self._executable_inputs.validateInputs(inputs)
        flat = inputs.asPackedFlatTuple(self._executable_inputs)
        if self._link is not None:
            self._link.upload_state()
        outputs = device.run(flat)
        if self._training:
            self._weights.are_stale = True
        if self._link is not None:
            self._link.stepped()
        for output in outputs:
            output.__dict__["backward"] = _refuse_backward
        return self._structured(device.program, outputs)

    def _refresh_from_training(self) -> None:
        """Take over weights that a training model has changed since this one last ran."""
        fetch = getattr(self._user_model, "copyWeightsToHostIfNeeded", None)
        if not callable(fetch):
            return
        fetch()
        version = self._user_model._host_weights_version
        if version is not None and version != self._weights_version:
            logger.debug("Implicit copyWeightsToDevice()")
            self.copyWeightsToDevice()
            self._weights_version = version

    @staticmethod
    def _structured(program: Program, outputs: List[torch.Tensor]) -> Any:
        on_device = iter(program.output_on_device)
        return _utils.reconstructTensorStructure(
            program.outputs_structure, outputs, lambda tensor: next(on_device)
        )

    # ---- weights ------------------------------------------------------------------------------

    @property
    def _host_weights_version(self) -> int:
        return self._weights.version

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Fetch the weights if they have been trained since; tell whether they had."""
        if not self._weights.are_stale:
            return False
        logger.debug("Implicit copyWeightsToHost()")
        self.copyWeightsToHost()
        return True

    def copyWeightsToHost(self) -> None:
        """Write the device's weights into the model's.

        Raises:
            poptorch.Error: not compiled.

        """
        self._weights.fetch(self._compiled())

    def copyWeightsToDevice(self) -> None:
        """Write the model's weights to the device; what was trained since the last look is lost.

        Raises:
            poptorch.Error: not compiled.

        """
        device = self._compiled()
        if self._link is not None:
            self._link.fetch()
        self._weights.upload(device)

    def copyNamedBuffersToDevice(self) -> None:
        """Write the buffers of ``updatableNamedBuffers`` to the device.

        Raises:
            poptorch.Error: not compiled, or the option is not set.

        """
        device = self._compiled()
        names = self._options._Popart.options.get("updatableNamedBuffers")
        if names is None:
            raise _impl.createPoptorchError(
                "No named buffers marked as updatable via updatableNamedBuffers option"
            )
        if self._link is not None:
            self._link.fetch()
        self._weights.upload_buffers(device, names)

    # ---- optimiser ----------------------------------------------------------------------------

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Make changed attributes, or another optimiser, effective.

        Raises:
            poptorch.Error: a constant attribute would change.

        """
        assert self._link is not None, "An inferenceModel has no optimizer: use trainingModel."
        self._link.set(optimizer, self.isCompiled())
        if self.isAttachedToDevice():
            self._link.upload_attributes()
            self._link.upload_state()

    # ---- devices ------------------------------------------------------------------------------

    def isAttachedToDevice(self) -> bool:
        """Tell whether the model is on a device."""
        return self.isCompiled() and self._is_attached

    def attachToDevice(self) -> None:
        """Load the model onto its device.

        Raises:
            poptorch.Error: not compiled, attached already, or another model has the device.

        """
        self._compiled()
        assert self._options.connection_type != enums.ConnectionType.Never, (
            "Trying to attach to an offline device (ConnectionType.Never)"
        )
        if self._is_attached:
            raise _impl.createPoptorchError("Device is already attached")
        ipus.attach(self._options)
        self._is_attached = True
        self._on_attach()

    def _on_attach(self) -> None:
        self.copyWeightsToDevice()
        if self._link is not None:
            self._link.attached()
        if self._rng_state is not None:
            self.rng_state = self._rng_state

    def detachFromDevice(self) -> None:
        """Give the device back; weights and optimiser state come home first.

        Raises:
            poptorch.Error: not compiled or not attached.

        """
        self._compiled()
        if not self._is_attached:
            raise _impl.createPoptorchError("Device is not attached")
        _ = self.rng_state  # read, it is kept
        if self._link is not None:
            self.copyWeightsToHostIfNeeded()
            self._link.fetch()
        ipus.detach(self._options)
        self._is_attached = False

    # ---- random numbers -----------------------------------------------------------------------

    @property
    def rng_state(self) -> List[int]:
        """The seed, then the state of the replicas' random number generators.

        The state that was read last is where a model that is compiled or attached anew goes on.
        """
        streams = self._compiled().streams
        logger.debug("Reading random seed")
        logger.debug("Reading RNG state")
        self._rng_state = [streams.seed, *streams.state()]
        return list(self._rng_state)

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        streams = self._compiled().streams
        logger.debug("Setting random seed to: %d", state[0])
        logger.debug("Setting RNG state")
        streams.seed = state[0]
        streams.set_state(list(state[1:]))
        self._rng_state = list(state)


__getattr__ = names.getter(__name__)
