"""Which of PopART's session options go together: what PopART says of them when it compiles."""

from __future__ import annotations

from typing import Any, Dict, Iterator, Mapping, Optional

from .._errors import Error, createError

# PopART's AccumulateOuterFragmentSchedule, RecomputationType, BatchSerializationMethod and
# BatchSerializationTransformContext, where a value is named below.
_SERIAL = 1
_PIPELINE = 3
_LOOP = 2
_FORWARD = 0


def refusals(
    popart: Mapping[str, Any],
    *,
    ipus: int,
    pipelined: bool,
    phased: bool,
    training: bool,
    accumulation: int,
) -> Iterator[Error]:
    """Yield what PopART refuses of options that it takes one by one.

    Args:
        popart: ``Options._Popart.options``; what is not in it has PopART's default.
        ipus: of a replica.
        pipelined: PopTorch has set ``enablePipelining``: a pipeline over several IPUs.
        phased: the program runs in phases.
        training: with a backward pass.
        accumulation: gradient accumulation.

    Yields:
        an error for each contradiction, with the place in PopART's sources in this module.

    """
    options: Dict[str, Any] = {
        "accumulateOuterFragmentSettings.schedule": _SERIAL,
        "enablePipelining": pipelined,
        **popart,
    }
    if options.get("enableExplicitIR"):  # sessionoptions.hpp: what stands for explicit programs
        for name in ("explicitRecomputation", "enableExplicitMainLoops", "useHostCopyOps"):
            options[name] = True
    loops = options.get("useHostCopyOps") and options.get("enableExplicitMainLoops")
    if options["enablePipelining"] and ipus == 1 and not loops:  # ir.cpp:580-588
        yield _error(
            "Pipelining requires more than 1 IPU (currently 1) and the 'virtualGraphMode' session "
            "option to not be VirtualGraphMode::Off: leave enablePipelining out"
        )
    for check in (_collectives, _recomputation, _main_loops, _serialization):
        message = check(options, phased, training)
        if message is not None:
            yield _error(message)
    if not options.get("enableGradientAccumulation", accumulation > 1) and accumulation > 1:
        yield _error(  # sessionoptions.cpp:256
            "enableGradientAccumulation is false, but accumulationFactor > 1. Either enable "
            "gradient accumulation, or set the accumulation factor to 1"
        )
    for name in ("defaultBufferingDepth", "defaultPrefetchBufferingDepth"):
        if options.get(name, 1) < 1:  # sessionoptions.cpp:223
            yield _error(
                f"Unable to support a buffering depth of {options[name]} (minimum buffering depth "
                f"is 1): {name}"
            )


def _error(message: str) -> Error:
    return createError(message, layer="popart_exception")


def _collectives(options: Mapping[str, Any], phased: bool, training: bool) -> Optional[str]:
    """Return what contiguatecollectivesformerging.cpp:44-52 says."""
    prepared = "replicatedCollectivesSettings.prepareScheduleForMergingCollectives"
    if options.get(prepared) and options["accumulateOuterFragmentSettings.schedule"] == _SERIAL:
        return (
            "Incompatible accumulateOuterFragmentSchedule used with session option: "
            f"options.{prepared}. Specifically SessionOptions::accumulateOuterFragmentSettings."
            "schedule can not be set to AccumulateOuterFragmentSchedule::Serial, which is its "
            "default: set accumulateOuterFragmentSettings.schedule to 0, 2 or 3"
        )
    return None


def _recomputation(options: Mapping[str, Any], phased: bool, training: bool) -> Optional[str]:
    """Return what recompute.cpp:226-233 says, reached by ir.cpp:1464 and 1692."""
    explicit = bool(options.get("explicitRecomputation"))
    reached = explicit or not options["enablePipelining"]
    loops = options.get("useHostCopyOps") and options.get("enableExplicitMainLoops")
    if options.get("autoRecomputation") != _PIPELINE or not reached or phased:
        return None
    if options["enablePipelining"] and loops:
        return None
    return (
        "Invalid RecomputationType::Pipeline in autoAnnotate when using implicit pipelining: "
        "without a pipeline of several IPUs set autoRecomputation to 1 (Standard), 2 (NormOnly) "
        "or 4 (RecomputeAll)"
    )


def _main_loops(options: Mapping[str, Any], phased: bool, training: bool) -> Optional[str]:
    """Return what ir.cpp:718-736 says."""
    loops, copies = options.get("enableExplicitMainLoops"), options.get("useHostCopyOps")
    if loops and not copies:
        return "enableExplicitMainLoops requires useHostCopyOps."
    if options.get("aliasZeroCopy"):
        if options["enablePipelining"] and not (loops and copies):
            return "Alias zero copy is not supported with implicit pipelining."
        if not options.get("explicitRecomputation"):
            return "Alias zero copy is currently not supported with implicit recomputation."
    return None


def _serialization(options: Mapping[str, Any], phased: bool, training: bool) -> Optional[str]:
    """Return what ir.cpp:773-784 says."""
    settings = "batchSerializationSettings."
    loop = options.get(settings + "method") == _LOOP
    if loop and options.get(settings + "transformContext", _FORWARD) == _FORWARD and training:
        return (
            "Loop batch serialization is only supported in "
            "BatchSerializationTransformContext::Bwd due to LoopGradOp missing."
        )
    return None
