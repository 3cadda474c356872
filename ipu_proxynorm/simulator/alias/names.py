"""PopTorch 3.4's module-level names that the simulator's modules have no definition for.

A name that PopTorch's module has imported gives what it imports. A name that belongs to machinery
which the simulator does not have can be imported, but every use of it is refused in words. Counted
in PopTorch's ``python/*.py``; `docs/simulator.md` lists the refused ones.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any, Callable, Dict, NoReturn, Tuple

# Imports, by module: "package", or "package:name".
IMPORTED: Dict[str, str] = {
    "": "abc atexit copyreg functools importlib os pickle pkg_resources typing:Any typing:Dict "
    "typing:Iterator typing:Iterable typing:Sequence typing:Type ._utils:accessAttributes "
    "._utils:getIpuTensorId ._poplar_executor:_OverwriteContextManager",
    "_dataloader": "io signal sys os tempfile enum math pickle time torch.multiprocessing .enums "
    "._impl ._utils:custom_arg_parsers ._utils:getCustomParser ._utils:reconstructTensorStructure",
    "_impl": "contextlib:contextmanager copy copyreg fcntl hashlib itertools os functools:partial "
    "functools:wraps weakref torch ._logging:logger",
    "_logging": "datetime>dt signal subprocess traceback faulthandler",
    "_options_config": "poptorch",
    "_options_impl": "abc logging torch tqdm "
    ".settings.execution_strategy:IStageManager",
    "_poplar_executor": "collections copy datetime:timedelta functools itertools os pickle "
    "typing:Callable types:MethodType weakref warnings ._optimizer_attributes .profiling "
    ".poptorch_core ._poptorch_data ._utils:accessAttributes ._utils:flattenTensorStructure "
    "._utils:reconstructTensorStructure ._utils:isOnIpu .options:PipelinedExecution "
    ".options:ShardedExecution .optim:Optimizer",
    "_utils": "ctypes functools inspect .poptorch_core ._logging:logger",
    "ops": "collections:OrderedDict typing:Callable typing:Dict typing:List typing:Union "
    "typing:Tuple typing:Optional torch .enums .poptorch_core ._impl ._utils:ATTR_PREFIX "
    "._utils:flattenTensorStructure ._utils:reconstructTensorStructure "
    ".operations.blocks:_BlockHook",
    "optim": "inspect typing:List typing:Type",
    "options": "json typing:Union typing:Set .ops "
    ".settings.execution_strategy:_DefaultStageManager "
    ".settings.execution_strategy:_IPhasedExecution",
    "poptorch_core": "._impl:getIpuTensorId",
    "profiling": "os typing:Dict ._logging:logger",
}  # fmt: skip

_WORKERS = "the shared memory of its data workers; the simulator's are in simulator/loading"
_READERS = "how it reads an optimiser's attributes; call convertOptimizerToDict"
_CORE = "its C++ module's graph, engine and metadata, which a CPU has none of"

# Names whose every use is refused, by module, with what they are part of.
REFUSED: Dict[str, Dict[str, str]] = {
    "": {"importPoptorchMetadataFromFile": "its executables' format; call poptorch.load"},
    "_dataloader": dict.fromkeys(
        (
            "_AsynchronousWorkerProcess",
            "_HostCommand",
            "_WorkerState",
            "_HostCommandHandler",
            "_EndOfFileFlag",
            "_RingBufferIndex",
            "_IDataRingBuffer",
            "_DataRingBufferWriter",
            "_DataRingBufferReader",
        ),
        _WORKERS,
    ),
    "_optimizer_attributes": dict.fromkeys(
        (
            "_GroupGetter",
            "_OptimizerGetter",
            "_ValueConstPairFormatter",
            "_IsEqualTo",
            "_AttrReader",
            "_BetaReader",
        ),
        _READERS,
    ),
    "poptorch_core": dict.fromkeys(
        (
            "CompilerOptions",
            "TracingMode",
            "appendPoptorchMetadataToFile",
            "attachToDevice",
            "compileWithManualTracing",
            "copyNamedBuffersToDevice_impl",
            "copyWeightsToDevice_impl",
            "copyWeightsToHost_impl",
            "createGraph",
            "cycleCount",
            "detachFromDevice",
            "endDispatch",
            "endOutputsMove",
            "endParametersMove",
            "execute",
            "finalizeGraph",
            "getRandomSeed",
            "getRngState",
            "getTimestamps",
            "importPoptorchMetadataFromFile",
            "isAlreadyRegistered",
            "isAttachedToDevice",
            "isGraphNondeterministic",
            "loadEngineAndConnectStreams",
            "mapParamsToNames",
            "processDispatchAndImportExecutable",
            "readOptimizerState",
            "registerBuffersWithCallback",
            "registerCPUCallBack",
            "saveExecutableToFile",
            "setCustomCodeletsPath",
            "setPerReplica",
            "setRngState",
            "startDispatch",
            "startOutputsMove",
            "startParametersMove",
            "updateOptimizers",
            "writeOptimizerState",
            "_getPopartIR",
            "_getTensorNames",
        ),
        _CORE,
    ),
    "profiling": {"_Channels": "libpvti, which comes with the SDK", "pvti": "the SDK"},
}


class Refused:
    """A name that can be imported but not used.

    Raises:
        poptorch.Error: on every use: a call, an attribute, a class derived from it.

    """

    def __init__(self, name: str, part_of: str) -> None:
        self.__dict__.update(_refused_name=name, _part_of=part_of)

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        package = __name__.rpartition(".alias.")[0]
        raise importlib.import_module("._errors", package).createError(
            f"{self._refused_name} is part of PopTorch's own machinery ({self._part_of}), which "
            "the simulator does not have: use PopTorch's public API instead."
        )

    __call__ = __mro_entries__ = __iter__ = __getitem__ = __instancecheck__ = _refuse
    __subclasscheck__ = _refuse

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks of any object
            raise AttributeError(name)
        self._refuse()

    def __repr__(self) -> str:
        return f"<{self._refused_name}: refused, see docs/simulator.md>"


def _targets(module: str) -> Dict[str, Tuple[str, str]]:
    """Return the package and the attribute in it ("" for none) of a module's imports, by name."""
    found = {}
    for entry in IMPORTED.get(module, "").split():
        entry, _, renamed = entry.partition(">")
        package, _, attribute = entry.partition(":")
        found[renamed or attribute or package.rpartition(".")[2]] = (package, attribute)
    return found


def getter(module: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of one of the simulator's modules that PopTorch has, too.

    Args:
        module: its ``__name__``.

    """
    package = __name__.rpartition(".alias.")[0]
    own = module[len(package) :].lstrip(".")
    targets = _targets(own)

    def __getattr__(name: str) -> Any:
        if name in targets:
            source, attribute = targets[name]
            if source == "poptorch":
                return sys.modules[package]
            found = importlib.import_module(source, package)
            return getattr(found, attribute) if attribute else found
        part_of = REFUSED.get(own, {}).get(name)
        if part_of is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        return Refused(f"poptorch.{own}.{name}" if own else f"poptorch.{name}", part_of)

    return __getattr__
