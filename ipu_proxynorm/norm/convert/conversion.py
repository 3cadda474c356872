"""Another norm for networks that are not ours: each norm and its activation become our unit."""

from __future__ import annotations

import dataclasses
import fnmatch
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import torch
from torch import nn

from ipu_proxynorm.errors import UserError, nearest
from ipu_proxynorm.norm.activations import ActivationLike
from ipu_proxynorm.norm.convert.activations import Known
from ipu_proxynorm.norm.convert.calls import FUNCTIONAL_NORMS, Call
from ipu_proxynorm.norm.convert.forward import rewrite
from ipu_proxynorm.norm.convert.layers import NormLayer, create_unit, norm_layer
from ipu_proxynorm.norm.convert.plan import ConversionPlan, Fusion, plan
from ipu_proxynorm.norm.convert.readers import linear_readers
from ipu_proxynorm.norm.convert.reading import read
from ipu_proxynorm.norm.convert.report import ConversionReport, NormLine
from ipu_proxynorm.norm.convert.state import State
from ipu_proxynorm.norm.modules import ProxyNormAct
from ipu_proxynorm.norm.places import registrations
from ipu_proxynorm.norm.spec import NormSpec, parse_norm_spec
from ipu_proxynorm.norm.units import unit_activation


def convert_norms(
    model: nn.Module,
    spec: Union[str, NormSpec],
    *,
    example: Any = None,
    keep: Sequence[str] = (),
    activations: Optional[Mapping[type[nn.Module], ActivationLike]] = None,
    keep_shift: bool = False,
    eps: Optional[float] = None,
    **options: Any,
) -> ConversionReport:
    """Replace the norms of a network in place, each with the activation that follows it.

    γ and β stay the very Parameter objects they were; the report names the parameters that are
    new (Proxy Norm's) and removed. On an error the network is as it was.

    Args:
        model: any network; torchvision's and timm's are tested.
        spec: norm spec of all norms, such as ``gn4+pn``; without ``+ws``.
        example: an input (N, C, H, W), or a tuple of arguments, for networks that ``torch.fx``
            cannot trace: they are called with it, in training and in inference.
        keep: names of norms to leave as they are; ``*`` stands for anything.
        activations: what activation modules of classes that are not known compute.
        keep_shift: under ``+pn``, keep β where no activation follows; else it is removed.
        eps: the ε of all norms; None: each keeps its own.
        options: further arguments of `create_norm_act`: ``proxy_eps``, ``method``, ``n``,
            ``recompute``, ``channel_grouping``, ``momentum``.

    Returns:
        What became of each norm, and why.

    Raises:
        UserError: not a spec, groups that do not divide a norm's channels, a name in ``keep`` that
            no norm has, an activation that no unit can have, or a network that cannot be traced.

    """
    _refuse_compiled(model)
    parsed, known = _parse(spec), _known(activations or {})
    layers = _find(model, parsed, known)
    kept = _kept(layers, keep)
    convertible = {n: x for n, x in layers.items() if not x.refusal and n not in kept}
    _check_groups(convertible, parsed)
    reading = read(model, list(convertible.values()), known, example)
    planned = plan(model, convertible.values(), reading, known)
    fusions = {id(fusion.layer.module): fusion for fusion in planned.fusions}
    units: Dict[int, nn.Module] = {}
    for fusion in planned.fusions:
        if fusion.called:
            bare = fusion.activation is None and (keep_shift or fusion.blocked)
            target = dataclasses.replace(parsed, proxy=False) if bare else parsed
            units[id(fusion.layer.module)] = create_unit(
                fusion.layer, target, fusion.activation, eps, options, fusion.written
            )
    for norm, readers in linear_readers(model, planned.fusions, reading, known).items():
        unit = units[norm]
        if isinstance(unit, ProxyNormAct):
            unit.readers = readers
    lines = [
        _line(name, layer, name in kept, fusions.get(id(layer.module)), units)
        for name, layer in layers.items()
    ]
    lines += _functional(model, reading.calls + reading.partly)
    before = State(model)
    try:
        return _apply(model, str(parsed), planned, units, lines)
    except BaseException:
        before.put_back()
        raise


def _refuse_compiled(model: nn.Module) -> None:
    """Refuse a network whose forward is no Python code any more."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            f"the model is TorchScript ({kind}), whose compiled forward cannot be changed: convert "
            "the network that it was made of, and script or trace that afterwards"
        )
    if kind == "OptimizedModule":
        raise UserError(
            "the model is compiled by torch.compile: convert the network itself "
            "(model._orig_mod), and compile it afterwards"
        )


def _parse(spec: Union[str, NormSpec]) -> NormSpec:
    try:
        parsed = parse_norm_spec(spec)
    except ValueError as error:
        raise UserError(str(error)) from error
    if parsed.weight_standardization:
        plain = dataclasses.replace(parsed, weight_standardization=False)
        raise UserError(
            f"norm spec '{parsed}': convert_norms leaves convolutions as they are, so their "
            f"weights cannot be standardized; use '{plain}'"
        )
    return parsed


def _known(activations: Known) -> Known:
    """Return the activations that the user names, each of which a unit can have."""
    for kind, activation in activations.items():
        _check_activation(kind, activation)
    return dict(activations)


def _check_activation(kind: type[nn.Module], activation: ActivationLike) -> None:
    try:
        unit_activation(activation)
    except (ValueError, TypeError) as error:
        name = getattr(kind, "__name__", repr(kind))
        raise UserError(f"activations={{{name}: ...}}: {error}") from error


def _find(model: nn.Module, spec: NormSpec, known: Known) -> Dict[str, NormLayer]:
    """Return the norms of a network by name, whether or not they can be converted."""
    found: Dict[str, NormLayer] = {}
    inner: List[nn.Module] = []
    for name, module in model.named_modules():
        layer = norm_layer(module, known)
        if layer is None or any(module is m for m in inner):
            continue
        if module is model:
            raise UserError(
                f"the model is itself a norm, {type(module).__name__}, and cannot be replaced in "
                "place: use create_norm_act, or wrap it, e.g. in torch.nn.Sequential"
            )
        inner.extend(m for m in module.modules() if m is not module)
        if spec.kind == "bn" and isinstance(module, nn.SyncBatchNorm) and not layer.refusal:
            layer = dataclasses.replace(layer, refusal="takes its statistics over all devices")
        found[name] = layer
    return found


def _kept(layers: Mapping[str, NormLayer], patterns: Sequence[str]) -> List[str]:
    kept: List[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        names = fnmatch.filter(layers, pattern)
        if not names:
            close = nearest(pattern, layers) or list(layers)[:3]
            listed = f"; norms are called, e.g., {', '.join(close)}" if close else ""
            raise UserError(f"keep={pattern!r}: no norm of the model has this name{listed}")
        kept.extend(names)
    return kept


def _check_groups(layers: Mapping[str, NormLayer], spec: NormSpec) -> None:
    channels = {name: layer.channels for name, layer in layers.items()}
    wrong = [name for name, count in channels.items() if spec.groups and count % spec.groups]
    if not wrong:
        return
    asked, name = spec.groups or 1, wrong[0]
    fits = [
        groups
        for groups in range(1, min(channels.values()) + 1)
        if not any(count % groups for count in channels.values())
    ]
    best = min(fits, key=lambda groups: (abs(groups - asked), groups))
    others = f", nor those of {len(wrong) - 1} other norms" if len(wrong) > 1 else ""
    raise UserError(
        f"norm {name!r}: the {asked} groups of '{spec}' do not divide its {channels[name]} "
        f"channels{others}; the nearest number of groups that divides every norm's is {best}, or "
        f"leave norms out with keep=[{name!r}, ...]"
    )


def _line(
    name: str,
    layer: NormLayer,
    kept: bool,
    fusion: Optional[Fusion],
    units: Mapping[int, nn.Module],
) -> NormLine:
    line = NormLine(name, type(layer.module).__name__, layer.channels, "refused")
    if fusion is None:
        if kept:
            return dataclasses.replace(line, outcome="kept")
        return dataclasses.replace(line, reason=layer.refusal)
    if not fusion.called:
        return dataclasses.replace(line, reason=fusion.reason)
    unit = units[id(layer.module)]
    becomes = f"{type(unit).__name__} {getattr(unit, 'spec', '')}".strip()
    if fusion.activation is None:
        return dataclasses.replace(line, outcome="plain", becomes=becomes, reason=fusion.reason)
    return dataclasses.replace(
        line, outcome="fused", becomes=becomes, activation=fusion.activation.name
    )


def _functional(model: nn.Module, calls: Sequence[Call]) -> List[NormLine]:
    """Return a line for each norm that is a function: it has no module to be replaced."""
    names = {id(module): name for name, module in model.named_modules()}
    found = {
        NormLine(
            names[id(call.owner)],
            call.text,
            0,
            "refused",
            reason=f"is a function called in the forward of {type(call.owner).__name__}",
        )
        for call in calls
        if call.module is None and call.text in FUNCTIONAL_NORMS
    }
    return sorted(found, key=lambda line: (line.name, line.type))


def _apply(
    model: nn.Module,
    spec: str,
    planned: ConversionPlan,
    units: Mapping[int, nn.Module],
    lines: List[NormLine],
) -> ConversionReport:
    """Do what is planned, and report it."""
    places, names = registrations(model), {id(m): n for n, m in model.named_modules()}
    parameters = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    for owner, graphs in planned.rewrites.items():
        rewrite(owner, graphs)
    for parent, name in planned.identities:
        setattr(parent, name, nn.Identity())
    for fusion in planned.fusions:
        if fusion.called:
            for parent, name in places[fusion.layer.module]:
                setattr(parent, name, units[id(fusion.layer.module)])
    now = dict(model.named_parameters())
    old_ids, new_ids = ({id(p) for p in some.values()} for some in (parameters, now))
    left = {id(buffer) for buffer in model.buffers()}
    return ConversionReport(
        spec=spec,
        norms=tuple(lines),
        kept_parameters=tuple(n for n, p in now.items() if id(p) in old_ids),
        new_parameters=tuple(n for n, p in now.items() if id(p) not in old_ids),
        removed_parameters=tuple(n for n, p in parameters.items() if id(p) not in new_ids),
        removed_buffers=tuple(n for n, b in buffers.items() if id(b) not in left),
        identities=tuple(
            sorted(f"{names[id(parent)]}.{name}".lstrip(".") for parent, name in planned.identities)
        ),
        rewritten=tuple(names[id(owner)] for owner in planned.rewrites),
    )
