"""Binding of call arguments to a model's signature, and their check against the compiled ones."""

from __future__ import annotations

import copy
import inspect
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from . import _impl, _utils
from ._logging import logger

_MISMATCH_HINT = (
    "\nThis error occurred because the inputs passed at runtime don't match the inputs used to "
    "compile the model.\nTo recompile the model for the new inputs create a new inferenceModel / "
    "trainingModel wrapper or call destroy() on the curent one and try again."
)


def _mismatch(text: str) -> Exception:
    return _impl.createPoptorchError(text + _MISMATCH_HINT)


class Args:
    """Arguments in the order of the signature: positional ones with their names, then named."""

    def __init__(self) -> None:
        self.args: List[Any] = []
        self.arg_names: List[str] = []
        self.kwargs: Dict[str, Any] = {}

    def appendArg(self, arg: Any, name: str) -> None:
        """Add a positional argument."""
        self.args.append(arg)
        self.arg_names.append(name)

    def setNamedArg(self, name: str, arg: Any) -> None:
        """Set an argument that can only be passed by name."""
        self.kwargs[name] = arg

    def clone(self) -> Args:
        """Return a copy that shares the values."""
        clone = Args()
        clone.args = copy.copy(self.args)
        clone.arg_names = copy.copy(self.arg_names)
        clone.kwargs = copy.copy(self.kwargs)
        return clone

    def forEach(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Replace every tensor by ``function(tensor)``."""
        for name in ("args", "kwargs"):
            values = getattr(self, name)
            tensors = [function(tensor) for tensor in _utils.flattenTensorStructure(values)]
            setattr(self, name, _utils.reconstructTensorStructure(values, tensors))

    def asPackedFlatTuple(self, canonical_args: Optional[Args] = None) -> Tuple[Any, ...]:
        """Return all tensors, dictionaries in the order that ``canonical_args`` has them in."""
        canonical = canonical_args or self
        return tuple(
            _utils.flattenTensorStructure(self.args, canonical.args)
            + _utils.flattenTensorStructure(self.kwargs, canonical.kwargs)
        )

    def validateInputs(self, inputs: Args) -> None:
        """Check ``inputs`` against these, the arguments that the model was compiled for.

        Raises:
            poptorch.Error: another number, type, data type, shape, key or value.

        """
        if len(inputs.args) != len(self.args):
            raise _mismatch(
                "Number of positional arguments mismatch: expected "
                f"{len(self.args)} arguments but got {len(inputs.args)}."
            )
        for name, compiled, given in zip(self.arg_names, self.args, inputs.args):
            _validate(name, compiled, given)
        _validate_keys("named arguments", self.kwargs, inputs.kwargs)
        for name, compiled in self.kwargs.items():
            _validate(name, compiled, inputs.kwargs[name])


def _validate_keys(name: str, compiled: Dict[Any, Any], given: Dict[Any, Any]) -> None:
    expected, provided = set(compiled), set(given)
    details = []
    if provided - expected:
        details.append("Unexpected arguments: " + ", ".join(sorted(provided - expected)))
    if expected - provided:
        details.append("Missing arguments: " + ", ".join(sorted(expected - provided)))
    if details:
        raise _mismatch(f"Keys mismatch for {name}: {'. '.join(details)}.")


def _validate_sequence(name: str, compiled: Any, given: Any) -> None:
    if len(compiled) != len(given):
        raise _mismatch(
            f"Length mismatch for {name}: expected {len(compiled)} elements but got {len(given)}."
        )
    for index, (expected, got) in enumerate(zip(compiled, given)):
        _validate(f"{name}[{index}]", expected, got)


def _validate(name: str, compiled: Any, given: Any) -> None:
    both_tensors = isinstance(compiled, torch.Tensor) and isinstance(given, torch.Tensor)
    if not both_tensors and type(compiled) is not type(given):
        raise _mismatch(
            f"Type mismatch for {name}: expected {type(compiled)} but got {type(given)}."
        )
    if isinstance(compiled, torch.Tensor):
        if compiled.dtype != given.dtype:
            raise _mismatch(
                f"Data type mismatch for {name}: expected {compiled.dtype} but got {given.dtype}."
            )
        if compiled.shape != given.shape:
            raise _mismatch(
                f"Shape mismatch for {name}: expected {compiled.shape} but got {given.shape}."
            )
    elif isinstance(compiled, dict):
        _validate_keys(name, compiled, given)
        for key, value in compiled.items():
            _validate(f"{name}[{key}]", value, given[key])
    elif isinstance(compiled, (tuple, list)):
        _validate_sequence(name, compiled, given)
    else:
        tensors = _utils.flattenTensorStructure(compiled)
        if tensors:
            _validate_sequence(name, tensors, _utils.flattenTensorStructure(given))
        elif compiled != given:
            # Whatever is no tensor has been compiled into the graph.
            raise _mismatch(f"Value mismatch for {name}: expected {compiled} but got {given}.")


def _signature(model: Any) -> Optional[inspect.Signature]:
    if isinstance(model, torch.nn.Module):
        return inspect.signature(model.forward)
    if not callable(model):
        raise TypeError("Expected a torch.nn.Module or a callable")
    try:
        return inspect.signature(model)
    except ValueError:  # built-in functions have none
        return None


class ArgsParser:
    """Binds arguments to the signature of a model's ``forward``, defaults filled in."""

    def __init__(self, model: Any) -> None:
        signature = _signature(model)
        variadic = [
            inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
            inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
        ]
        parameters = variadic if signature is None else list(signature.parameters.values())
        self._parameters: List[inspect.Parameter] = parameters
        self._names = [parameter.name for parameter in parameters]
        self._variadic = any(
            parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
            for parameter in parameters
        )
        self._warned_not_contiguous = False

    def __call__(
        self, args: Tuple[Any, ...], kwargs: Dict[str, Any], fast_path: bool = False
    ) -> Args:
        """Return the arguments in the order of the signature.

        Raises:
            AssertionError: too many arguments, an unknown name, or one passed twice.
            poptorch.Error: an argument without a default is missing.

        """
        if not self._variadic:
            assert len(args) + len(kwargs) <= len(self._names), (
                f"Too many arguments provided: expected {self._names} ({len(self._names)}) "
                f"but got {len(args) + len(kwargs)}"
            )
            for name in kwargs:
                assert name in self._names, (
                    f"{name} is not a valid parameter.Allowed values are {self._names}"
                )
        bound = self._bind(args, kwargs)
        self._make_contiguous(bound)
        return bound

    def _bind(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Args:
        bound = Args()
        named_only = False  # set once *args has taken the remaining positional arguments
        for index, parameter in enumerate(self._parameters):
            name = parameter.name
            if parameter.kind == parameter.VAR_KEYWORD:
                for key in kwargs:
                    if key not in self._names[:index]:
                        bound.setNamedArg(key, kwargs[key])
                continue
            if parameter.kind == parameter.VAR_POSITIONAL:
                for position, value in enumerate(args[index:]):
                    bound.appendArg(value, f"*{name}[{position}]")
                named_only = True
                args = args[:index]
                continue
            if index < len(args):
                assert name not in kwargs, f"Parameter {name} was passed more than once"
                value = args[index]
            elif name in kwargs:
                value = kwargs[name]
            elif parameter.default is not parameter.empty:
                value = parameter.default
            else:
                raise _impl.createPoptorchError(f"Mandatory parameter {name} missing")
            if named_only or parameter.kind == parameter.KEYWORD_ONLY:
                bound.setNamedArg(name, value)
            else:
                bound.appendArg(value, name)
        return bound

    def _make_contiguous(self, bound: Args) -> None:
        if all(tensor.is_contiguous() for tensor in bound.asPackedFlatTuple()):
            return
        bound.forEach(lambda tensor: tensor.contiguous())
        if not self._warned_not_contiguous:
            logger.warning(
                "At least one input tensor is not contiguous: "
                "non-contiguous tensors will be converted."
            )
            self._warned_not_contiguous = True
