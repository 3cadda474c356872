"""The proxies' moments of many layers at once: one handful of operations, not one a layer."""

from __future__ import annotations

from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ipu_proxynorm.norm.execution import may_use_custom_backward
from ipu_proxynorm.norm.functional import Constants, unit_constants
from ipu_proxynorm.norm.fused import Prepared, prepare
from ipu_proxynorm.norm.modules import ProxyNormAct
from ipu_proxynorm.norm.moments.gaussian import proxy_moments
from ipu_proxynorm.norm.pending import Pending
from ipu_proxynorm.norm.standing_in import StandIn


def share_moments(
    *modules: nn.Module, keep: Optional[Callable[[Tensor], Tensor]] = None
) -> SharedMoments:
    """Compute the moments of all Proxy Norm layers within modules together.

    They are computed when the first module is called, and hold until the last one returns: give
    the network, or some modules of it in the order in which they run (after they have their blocks:
    the computation lies on the first one's IPU). With the custom backward
    on a CPU they are computed again only when a parameter has changed: once per weight update,
    however many micro-batches it accumulates. Outputs and gradients are those of the plain form.

    Args:
        modules: in the order in which they run.
        keep: marks what the units read of the moments, in a program of plain operators, as kept
            for the backward pass, where all else is computed again.

    Returns:
        A handle whose ``remove`` ends the sharing.

    Raises:
        ValueError: no module, or no Proxy Norm layer in them.

    """
    return SharedMoments(*modules, keep=keep)


def without_sharing(model: nn.Module) -> None:
    """Take what `share_moments` set up out of a copy of a network."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), SharedMoments):
                    del hooks[number]


class SharedMoments:
    """What `share_moments` set up; ``computed`` counts computations so far."""

    def __init__(
        self, *modules: nn.Module, keep: Optional[Callable[[Tensor], Tensor]] = None
    ) -> None:
        unique = {id(m): m for module in modules for m in module.modules()}
        self.layers = [m for m in unique.values() if isinstance(m, ProxyNormAct)]
        if not self.layers:
            raise ValueError(
                "there is no Proxy Norm layer (norm spec with +pn) to share moments of"
            )
        self.computed = 0
        self._keep = keep
        self._known: Dict[_Kind, Tuple[Tensor, List[Prepared]]] = {}
        self._handles = [
            modules[0].register_forward_pre_hook(self._before),
            modules[-1].register_forward_hook(self._after),
        ]

    def remove(self) -> None:
        """Let every layer compute its own moments again."""
        for handle in self._handles:
            handle.remove()
        self._known.clear()

    def __getstate__(self) -> Dict[str, Any]:
        """Leave out what can be computed again."""
        return {**self.__dict__, "_known": {}}

    def _before(self, module: nn.Module, inputs: Any) -> None:
        given = inputs[0] if inputs else None
        given = given.pending if isinstance(given, StandIn) else given
        given = given.value if isinstance(given, Pending) else given
        if isinstance(given, Tensor) and given.is_floating_point():
            self.refresh(dtype=given.dtype)
        else:
            self.refresh()

    def refresh(self, *, force: bool = False, dtype: Optional[torch.dtype] = None) -> None:
        """Hand every layer its moments, computed again where they have changed, or by force.

        Args:
            force: compute again.
            dtype: of the activations, in which plain operators take what they add; None: each
                layer casts by itself.
        """
        if force:
            self._known.clear()
        kinds: Dict[_Kind, List[ProxyNormAct]] = {}
        for layer in self.layers:
            kinds.setdefault(_kind(layer), []).append(layer)
        for kind, layers in kinds.items():
            # Side by side, so that what a form of constants is cut into has no gaps: a piece that
            # nothing reads has a gradient, too, of zeros.
            layers.sort(key=_form)
            sizes = [layer.num_features for layer in layers]
            parameters = zip(*(layer.moment_parameters for layer in layers))
            fusible = layers[0].activation.backward is not None
            fusible = fusible and layers[0].scale_rule == "applied"
            if fusible and may_use_custom_backward(layers[0].weight):
                with torch.no_grad():
                    joined = torch.stack([torch.cat(p) for p in parameters])  # (4, channels)
                prepared = self._prepared(kind, joined, layers[0], sizes)
                for layer, own in zip(layers, prepared):
                    layer.use_moments(own)
            else:
                self.computed += 1
                self._share_constants(layers, parameters, sizes, dtype)

    def _share_constants(
        self,
        layers: List[ProxyNormAct],
        parameters: Iterable[Tuple[Tensor, ...]],
        sizes: List[int],
        dtype: Optional[torch.dtype],
    ) -> None:
        """Compute the constants of plain operators together: all that is per channel, and casts."""
        first = layers[0]
        weight, bias, proxy_weight, proxy_bias = map(torch.cat, parameters)
        mean, variance = proxy_moments(
            *(weight, bias, proxy_weight, proxy_bias, first.activation),
            method=first.method,
            n=first.n,
        )
        scale = torch.rsqrt(variance + first.proxy_eps)
        joined = {
            form: unit_constants(weight, bias, mean, scale, first.activation, *form)
            for form in {_form(layer) for layer in layers}
        }
        parts = _Parts(sizes, self._keep)
        wanted = []
        for index, layer in enumerate(layers):
            own = joined[_form(layer)]
            kind, handed = layer.constants_in(dtype)
            shift = handed if layer.may_leave_shift else kind
            kinds = (kind, kind, kind, kind, shift, handed)
            wanted.append([parts.want(index, *it) for it in zip(own, kinds)])
        for layer, keys in zip(layers, wanted):
            layer.use_moments(Constants(*map(parts.get, keys)))

    def _prepared(
        self, kind: _Kind, joined: Tensor, layer: ProxyNormAct, sizes: List[int]
    ) -> List[Prepared]:
        known: Optional[Tuple[Tensor, List[Prepared]]] = self._known.get(kind)
        # Compared by value: writing through ``.data`` leaves no other trace. Not on a GPU, where
        # the comparison would wait for the device and the computation is cheap.
        if known is not None and joined.device.type == "cpu" and torch.equal(known[0], joined):
            return known[1]
        self.computed += 1
        weight, bias, proxy_weight, proxy_bias = joined.unbind()
        rows = torch.stack(
            prepare(
                weight,
                bias,
                proxy_weight,
                proxy_bias,
                layer.activation,
                proxy_eps=layer.proxy_eps,
                method=layer.method,
                n=layer.n,
            )
        )
        prepared = [Prepared(*own.unbind()) for own in rows.split(sizes, 1)]
        self._known[kind] = (joined, prepared)
        return prepared

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for layer in self.layers:
            layer.use_moments(None)


class _Parts:
    """Joined values, cast once for all layers that want them so, and cut into each layer's."""

    def __init__(
        self, sizes: Sequence[int], keep: Optional[Callable[[Tensor], Tensor]] = None
    ) -> None:
        self._sizes = sizes
        self._keep = keep
        self._values: Dict[Tuple[int, torch.dtype], Tensor] = {}
        self._wanted: Dict[Tuple[int, torch.dtype], List[int]] = {}
        self._cut: Dict[Tuple[int, torch.dtype], Dict[int, Tensor]] = {}

    def want(
        self, index: int, values: Optional[Tensor], dtype: Optional[torch.dtype]
    ) -> Optional[Tuple[int, Tuple[int, torch.dtype]]]:
        """Note that a layer wants its part of values in a dtype (None: theirs); return the key."""
        if values is None:
            return None
        key = id(values), values.dtype if dtype is None else dtype
        self._values[key] = values
        self._wanted.setdefault(key, []).append(index)
        return index, key

    def get(self, wanted: Optional[Tuple[int, Tuple[int, torch.dtype]]]) -> Any:
        """Return a part, each once."""
        if wanted is None:
            return None
        index, key = wanted
        if key not in self._cut:
            self._cut[key] = self._cut_up(key)
        return self._cut[key][index]

    def _cut_up(self, key: Tuple[int, torch.dtype]) -> Dict[int, Tensor]:
        """Cut what is wanted; what lies between stays in one piece."""
        wanted = set(self._wanted[key])
        sizes: List[int] = []
        places: Dict[int, int] = {}
        for index, size in enumerate(self._sizes):
            if index in wanted:
                places[index] = len(sizes)
                sizes.append(size)
            elif index and index - 1 not in wanted:
                sizes[-1] += size
            else:
                sizes.append(size)
        values = self._values[key].to(key[1])
        pieces = (values if self._keep is None else self._keep(values)).split(sizes)
        return {index: pieces[place] for index, place in places.items()}


def _form(layer: ProxyNormAct) -> Tuple[bool, bool]:
    """Return which form of the constants a layer wants; see `unit_constants`."""
    return layer.folds, layer.may_leave_shift


_Kind = Tuple[Any, ...]


def _kind(layer: ProxyNormAct) -> _Kind:
    """Return what layers must have in common to share a computation."""
    return (
        layer.activation,
        layer.method,
        layer.n,
        layer.proxy_eps,
        layer.weight.dtype,
        layer.weight.device,
        layer.scale_rule == "applied" or not may_use_custom_backward(layer.weight),
    )
