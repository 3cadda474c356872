"""Which converted units only linear operators read, so that they hand Proxy Norm's scale on."""

from __future__ import annotations

from collections import Counter
from typing import Dict, FrozenSet, Iterable, NamedTuple, Optional, Sequence

from torch import nn

from ipu_proxynorm.norm.conv import Conv2d, Linear, WSConv2d
from ipu_proxynorm.norm.convert.activations import Known
from ipu_proxynorm.norm.convert.calls import Call
from ipu_proxynorm.norm.convert.layers import has_hooks
from ipu_proxynorm.norm.convert.plan import Fusion
from ipu_proxynorm.norm.convert.reading import Reading
from ipu_proxynorm.norm.convert.trace import Looking, Untraceable, traced
from ipu_proxynorm.norm.modules import Readers, readers_of

# By exact class: a subclass, and a module with parametrizations, may compute something else.
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, Conv2d, WSConv2d, Linear)
_DROPPING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_POOLING = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_PASSING = ("dropout", "dropout2d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "flatten", "pad")
_MEANS = ("mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
_FACTORS = ("mul", "multiply")
_MODES = 2  # every forward is read in training and in inference


class _Read(NamedTuple):
    """How one call's result is read: by these layers, by means over space, by products."""

    layers: FrozenSet[nn.Module] = frozenset()
    means: bool = False
    factors: bool = False
    as_it_is: bool = True  # and by nothing else

    def join(self, other: _Read) -> _Read:
        return _Read(
            self.layers | other.layers,
            self.means or other.means,
            self.factors or other.factors,
            self.as_it_is and other.as_it_is,
        )


_OTHERWISE = _Read(as_it_is=False)


def linear_readers(
    model: nn.Module, fusions: Iterable[Fusion], reading: Reading, known: Known
) -> Dict[int, Readers]:
    """Return who takes the scale of each unit's output over, by the ``id`` of its norm.

    Units are left out whose output is read by anything that is not linear, written into, or read
    where not every call is known; and those a reader of which has hooks, a weight that another
    module has, too, or is called twice in a pass. A gate, as of squeeze-and-excite, is a reader
    that multiplies with what it made of the mean.
    """
    calls = _counted(reading.calls)
    owners = Counter(
        id(p)
        for m in model.modules()
        for _, p in m.named_parameters(recurse=False, remove_duplicate=False)
    )
    reader = _Reader(calls, owners, frozenset(_counted(reading.partly)), known)
    found: Dict[int, Readers] = {}
    for fusion in fusions:
        if not fusion.called or fusion.activation is None or fusion.blocked or fusion.written:
            continue
        ends = fusion.taken or [c for c in reading.calls if c.module is fusion.layer.module]
        readers = reader.readers(ends)
        if readers is not None:
            found[id(fusion.layer.module)] = readers
    return found


def _counted(calls: Iterable[Call]) -> Counter[int]:
    return Counter(id(call.module) for call in calls if call.module is not None)


class _Reader:
    """Reads calls of a network, or of one module that is called in it.

    Args:
        calls: how often each module is called in all passes, by its ``id``.
        owners: how many modules have a parameter, by its ``id``.
        partly: the ``id`` of modules not all of whose calls are known.
        known: activation modules that the user named.
    """

    def __init__(
        self, calls: Counter[int], owners: Counter[int], partly: FrozenSet[int], known: Known
    ) -> None:
        self._calls, self._owners, self._partly, self._known = calls, owners, partly, known
        self._within: Dict[int, _Read] = {}

    def readers(self, ends: Sequence[Call]) -> Optional[Readers]:
        """Return who reads these results, of one unit in each mode."""
        if len(ends) != _MODES:
            return None
        read = _Read()
        for call in ends:
            read = read.join(self._of(call.following()))
        if not read.as_it_is or not (read.layers or read.means) or read.factors > read.means:
            return None
        if read.means and not (read.layers or read.factors):
            return Readers(0, shift_too=True, foreign=True)
        return readers_of(read.layers, foreign=True)

    def _of(self, calls: Sequence[Call]) -> _Read:
        found = _Read(as_it_is=bool(calls))
        for call in calls:
            found = found.join(self._by(call))
        return found

    def _by(self, call: Call) -> _Read:
        """Return how one call reads what it is given."""
        module = call.module
        if call.opaque:
            return _OTHERWISE
        if module is None:
            return self._by_function(call)
        if any(has_hooks(inner) for inner in module.modules()) or id(module) in self._partly:
            return _OTHERWISE
        if type(module) in _WEIGHTED:
            return self._by_layer(module, self._calls[id(module)] == _MODES)
        if type(module) in _DROPPING + _POOLING and not getattr(module, "inplace", False):
            return self._of(call.following())
        if type(module) in _ADAPTIVE:
            sizes = module.output_size
            whole = set(sizes if isinstance(sizes, (list, tuple)) else (sizes,)) == {1}
            return _Read(means=True) if whole else self._of(call.following())
        return self._inside(module) if self._calls[id(module)] == _MODES else _OTHERWISE

    def _by_function(self, call: Call) -> _Read:
        if call.text in _MEANS:
            return _Read(means=True)
        if call.text in _FACTORS:
            return _Read(factors=True)
        return self._of(call.following()) if call.text in _PASSING else _OTHERWISE

    def _by_layer(self, layer: nn.Module, once: bool) -> _Read:
        tied = any(self._owners[id(p)] > 1 for p in layer.parameters())
        return _OTHERWISE if tied or not once else _Read(frozenset([layer]))

    def _inside(self, module: nn.Module) -> _Read:
        """Return how a module reads its only argument, from its forward."""
        if id(module) not in self._within:
            self._within[id(module)] = self._look_inside(module)
        return self._within[id(module)]

    def _look_inside(self, module: nn.Module) -> _Read:
        own = {id(m) for m in module.modules() if not type(m).__module__.startswith("torch.nn.")}
        found = _Read()
        for training in (True, False):
            try:
                seen = traced(module, Looking(frozenset(own)), training, self._known)
            except Untraceable:
                return _OTHERWISE
            given = [call for node, call in seen.calls.items() if node.op == "placeholder"]
            if seen.decisions.reasons or len(given) != 1:
                return _OTHERWISE
            calls = _counted([*seen.calls.values(), *seen.calls.values()])  # as if in two modes
            inner = _Reader(calls + self._calls, self._owners, self._partly, self._known)
            found = found.join(inner._of(given[0].following()))
        return found
