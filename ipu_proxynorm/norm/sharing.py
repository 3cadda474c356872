"""The proxies' moments of many layers at once: one handful of operations, not one a layer."""

from __future__ import annotations

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ipu_proxynorm.norm.execution import may_use_custom_backward
from ipu_proxynorm.norm.fused import Prepared, prepare
from ipu_proxynorm.norm.modules import ProxyNormAct
from ipu_proxynorm.norm.moments.gaussian import proxy_moments


def share_moments(*modules: nn.Module) -> SharedMoments:
    """Compute the moments of all Proxy Norm layers within modules together.

    They are computed when the first module is called, and hold until the last one returns: give
    the network, or the modules of a pipeline stage in the order in which they run (after the stage
    has its blocks, so that the computation lies on the stage's own IPU). With the custom backward
    on a CPU they are computed again only when a parameter has changed: once per weight update,
    however many micro-batches it accumulates. Outputs and gradients are those of the plain form.

    Returns:
        A handle whose ``remove`` ends the sharing.

    Raises:
        ValueError: no module, or no Proxy Norm layer in them.

    """
    return SharedMoments(*modules)


class SharedMoments:
    """What `share_moments` set up; ``computed`` counts computations so far."""

    def __init__(self, *modules: nn.Module) -> None:
        unique = {id(m): m for module in modules for m in module.modules()}
        self.layers = [m for m in unique.values() if isinstance(m, ProxyNormAct)]
        if not self.layers:
            raise ValueError(
                "there is no Proxy Norm layer (norm spec with +pn) to share moments of"
            )
        self.computed = 0
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
        self.refresh()

    def refresh(self, *, force: bool = False) -> None:
        """Hand every layer its moments, computed again where they have changed, or by force."""
        if force:
            self._known.clear()
        kinds: Dict[_Kind, List[ProxyNormAct]] = {}
        for layer in self.layers:
            kinds.setdefault(_kind(layer), []).append(layer)
        for kind, layers in kinds.items():
            sizes = [layer.num_features for layer in layers]
            parameters = zip(*(layer.moment_parameters for layer in layers))
            if layers[0].activation.backward is not None and may_use_custom_backward(
                layers[0].weight
            ):
                with torch.no_grad():
                    joined = torch.stack([torch.cat(p) for p in parameters])  # (4, channels)
                prepared = self._prepared(kind, joined, layers[0], sizes)
                for layer, own in zip(layers, prepared):
                    layer.use_moments(own)
            else:
                self.computed += 1
                weight, bias, proxy_weight, proxy_bias = map(torch.cat, parameters)
                moments = proxy_moments(
                    weight,
                    bias,
                    proxy_weight,
                    proxy_bias,
                    layers[0].activation,
                    method=layers[0].method,
                    n=layers[0].n,
                )
                for layer, mean, variance in zip(layers, *(m.split(sizes) for m in moments)):
                    layer.use_moments((mean, variance))

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
    )
