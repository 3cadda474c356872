"""``ipu.popart`` and ``ipu.engine``: options by PopART's and Poplar's own names, checked."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

from ipu_proxynorm import session_names as names
from ipu_proxynorm.errors import UserError, nearest

#: The keys of a run whose values are such options.
POPART, ENGINE = "ipu.popart", "ipu.engine"

#: Session options that a key of a run sets, because results, memory or checkpoints depend on them.
OWN_KEYS: Dict[str, str] = {
    "autoRecomputation": "ipu.recomputation",
    "groupNormStridedChannelGrouping": "model.channel_grouping",
    "enableStableNorm": "ipu.stable_norm",
    "enableEngineCaching": "ipu.executable_cache",
    "cachePath": "ipu.executable_cache",
    "replicatedCollectivesSettings.mergeAllReduceCollectives": "ipu.merge_all_reduce",
    "replicatedCollectivesSettings.prepareScheduleForMergingCollectives": "ipu.merge_all_reduce",
    "numIOTiles": "ipu.io_tiles",
    "enableStochasticRounding": "ipu.stochastic_rounding",
    "enableFloatingPointChecks": "ipu.floating_point_exceptions",
    "partialsTypeMatMuls": "ipu.half_partials",
    "enablePipelining": "ipu.execution",
    "accumulationFactor": "ipu.gradient_accumulation",
    "enableGradientAccumulation": "ipu.gradient_accumulation",
    "enableReplicatedGraphs": "ipu.replication_factor",
    "automaticLossScalingSettings.enabled": "optimizer.auto_loss_scaling",
    "engineOptions": ENGINE,
}
# What PopTorch sets through a setter of its own, which no option of this name may come beside:
# Options.toDict joins both and refuses a name that both have (python/_options_impl.py).
_POPTORCHS = ("meanAccumulationAndReplicationReductionStrategy",)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What an option's value must be.

    Attributes:
        types: of Python; a whole number stands for a float, too.
        text: in words.
        choices: the strings that it may be; empty: any.
        count: of an enumeration, how many values it has, from 0 up; 0: none.
    """

    types: Tuple[type, ...]
    text: str
    choices: Tuple[str, ...] = ()
    count: int = 0

    def holds(self, value: Any) -> bool:
        """Return whether a value is one of them."""
        given = type(value)  # true is no number
        if given not in self.types:
            return False
        if self.choices:
            return value in self.choices
        return not self.count or 0 <= value < self.count


_BOOL = Kind((bool,), "true or false")
_WHOLE = Kind((int,), "a whole number from 0 up")
_TEXT = Kind((str,), "a string")


def _one_of(*choices: str) -> Kind:
    return Kind((str,), f"one of {', '.join(choices)}", choices)


def _session_kinds() -> Dict[str, Kind]:
    kinds: Dict[str, Kind] = dict.fromkeys(names.BOOL, _BOOL)
    kinds.update(dict.fromkeys(names.INT, _WHOLE))
    for name, (enumeration, count) in names.ENUMERATIONS.items():
        text = f"a number from 0 to {count - 1}, a value of {enumeration.split('::')[-1]}"
        kinds[name] = Kind((int,), text, count=count)
    kinds.update(dict.fromkeys(names.FLOAT, Kind((float, int), "a number")))
    kinds.update(dict.fromkeys(names.STRING, _TEXT))
    kinds.update(dict.fromkeys(names.LIST, Kind((list,), "a list")))
    kinds.update(dict.fromkeys(names.MAPPING, Kind((dict,), "names with values")))
    return kinds


#: PopART's session options by name.
SESSION: Dict[str, Kind] = _session_kinds()

#: Options of Poplar's engine by name: those that public programs and PopART's sources set. Poplar's
#: own list is not public.
ENGINE_OPTIONS: Dict[str, Kind] = {
    **dict.fromkeys(
        names.words("""
        autoReport.all autoReport.outputArchive autoReport.outputDebugInfo
        autoReport.outputExecutionProfile autoReport.outputExecutionReport
        autoReport.outputGraphProfile autoReport.outputGraphReport autoReport.outputLoweredVars
        autoReport.outputSerializedGraph autoReport.streamAtEachRun
        debug.allowOutOfMemory debug.cbor debug.floatPointOpException debug.instrument
        debug.instrumentCompute debug.instrumentControlFlow debug.instrumentExternalExchange
        debug.json debug.nanOverflowMode debug.outputAllSymbols debug.retainDebugInformation
        debug.runtimeVerify debug.trace debug.verify
        device.clearAtomicFlagAfterExchange exchange.enablePrefetch opt.enableInlining
        opt.enableMultiAccessCopies opt.useAutoloader prng.enable prng.enableStochasticRounding
        profiler.blocks.implicitFlush profiler.includeCycleEstimates
        profiler.includeFlopEstimates target.extendedMemory target.gatewayMode
        target.syncReplicasIndependently
        """),
        _BOOL,
    ),
    **dict.fromkeys(
        names.words("""
        autoReport.executionProfileProgramRunCount debug.branchRecordTile
        opt.maxComputeSetsPerLoweredCopy prng.seed profiler.blocks.bufferSize profiler.blocks.tile
        streamCallbacks.numWorkerThreads target.hostSyncTimeout
        """),
        _WHOLE,
    ),
    **dict.fromkeys(
        names.words("""
        autoReport.directory debug.traceFile exchange.multicastPolicy profiler.blocks.filter
        profiler.format profiler.programs.filter streamCallbacks.maxLookahead
        streamCallbacks.multiThreadMode target.maxStreamCallbackThreadsPerNumaNode
        target.saveArchive target.workerStackSizeInBytes
        """),
        _TEXT,
    ),
    "debug.computeInstrumentationLevel": _one_of("vertex", "tile", "device", "ipu"),
    "debug.executionProfile": _one_of("none", "compute_sets", "vertices"),
    "exchange.streamBufferOverlap": _one_of("none", "any", "hostRearrangeOnly"),
    "opt.internalExchangeOptimisationTarget": _one_of("cycles", "balanced", "memory"),
    "target.deterministicWorkers": _one_of("true", "false", "portable"),
}


def flattened(given: Mapping[str, Any], known: Iterable[str]) -> Dict[str, Any]:
    """Return options with their names written out: ``{a: {b: 1}}`` is ``{a.b: 1}``.

    Overrides nest what dots part; an option whose value is a mapping (``known``) keeps it.
    """
    found: Dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping) and name not in known:
            inner = flattened(
                value, [k[len(name) + 1 :] for k in known if k.startswith(f"{name}.")]
            )
            found.update({f"{name}.{last}": item for last, item in inner.items()})
        else:
            found[str(name)] = value
    return found


def check_options(popart: Mapping[str, Any], engine: Mapping[str, Any], portable: bool) -> None:
    """Refuse names that PopART's and Poplar's options do not have, and values of another type.

    Args:
        popart: the values of ``ipu.popart``.
        engine: of ``ipu.engine``.
        portable: whether ``ipu.deterministic_workers`` is set.

    Raises:
        UserError: names the option, its value, what was expected and what to write instead.
    """
    for name, value in popart.items():
        given = f"{POPART}.{name}={value}"
        if name in OWN_KEYS:
            raise UserError(f"{given}: a key of its own sets it; set {OWN_KEYS[name]} instead")
        own = names.POPTORCH_BOOL | names.POPTORCH_INT | names.POPTORCH_STRING
        if name in own or name in _POPTORCHS:
            raise UserError(
                f"{given}: PopTorch sets it by itself, from keys such as "
                f"ipu.gradient_accumulation, and refuses it here; leave it out"
            )
        _check(given, name, value, SESSION, "PopART's session options, as PopTorch has them")
    for name, value in engine.items():
        given = f"{ENGINE}.{name}={value}"
        if name == "target.deterministicWorkers" and portable:
            raise UserError(f"{given}: ipu.deterministic_workers sets it; leave one of them out")
        _check(
            given,
            name,
            value,
            ENGINE_OPTIONS,
            "the engine options that public sources name; the environment variable "
            "POPLAR_ENGINE_OPTIONS takes any",
        )


def _check(given: str, name: str, value: Any, known: Mapping[str, Kind], which: str) -> None:
    kind: Optional[Kind] = known.get(name)
    if kind is None:
        close = nearest(name, known)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        raise UserError(f"{given}: there is no such option; {hint}expected one of {which}")
    text = str(value).lower() if isinstance(value, bool) and kind.choices else value
    if not kind.holds(text) or (kind is _WHOLE and value < 0):
        raise UserError(f"{given}: expected {kind.text}")


def engine_text(value: Any) -> str:
    """Return an engine option's value as Poplar takes it: a string."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def session_value(name: str, value: Any) -> Any:
    """Return a session option's value as PopTorch takes it: by its type alone it finds the name."""
    if name in names.FLOAT:
        return float(value)
    if name in names.MAPPING:
        return {key: engine_text(item) for key, item in value.items()}
    return value
