"""A module's forward without some of its activation calls, in the module's own place.

A functional call, or a module that a forward calls several times, cannot be taken away from
outside. The forward is traced by itself, all its submodules as they are, and the module becomes
an instance of a subclass of its class whose forward is the generated code: it stays the same
object, with its attributes, submodules, hooks and names in the state dict.
"""

from __future__ import annotations

import importlib
import itertools
import linecache
from types import ModuleType
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Tuple, Type

from torch import fx, nn

from ipu_proxynorm.norm.convert.activations import Known
from ipu_proxynorm.norm.convert.calls import Call
from ipu_proxynorm.norm.convert.trace import Untraceable, defaults, traced

# Source text of a function ``forward``, and the names that it uses.
Source = Tuple[str, Dict[str, Any]]
# Graphs of a forward in training and in inference.
Graphs = Tuple[fx.Graph, fx.Graph]
_numbers = itertools.count()


class _Module(NamedTuple):
    """A Python module by name, since modules cannot be pickled."""

    name: str


def without_activations(
    owner: nn.Module, erased: Dict[bool, FrozenSet[int]], known: Known
) -> Graphs:
    """Return a forward in training and in inference, as graphs without some activations.

    Args:
        owner: the module.
        erased: by training or not, the ordinals of the activation calls to leave out.
        known: activation modules that the user named.

    Raises:
        Untraceable: the forward cannot be traced.

    """
    if defaults(owner):
        optional = ", ".join(f"{name}={value}" for name, value in defaults(owner).items())
        raise Untraceable(f"its forward has optional arguments ({optional})")
    training, inference = (_graph(owner, erased[mode], mode, known) for mode in (True, False))
    return training, inference


def _graph(owner: nn.Module, ordinals: FrozenSet[int], training: bool, known: Known) -> fx.Graph:
    graph, calls = traced(owner, lambda module: True, training, known)
    found = _erase(graph, calls, ordinals)
    if found != ordinals:
        raise Untraceable("traced alone, it calls other activations than within the network")
    return graph


def _source(graph: fx.Graph) -> Source:
    code = graph.python_code("self")
    names = code.globals.items()
    return code.src, {
        name: _Module(value.__name__) if isinstance(value, ModuleType) else value
        for name, value in names
    }


def _erase(graph: fx.Graph, calls: Dict[fx.Node, Call], ordinals: FrozenSet[int]) -> FrozenSet[int]:
    found: List[int] = []
    for node, call in calls.items():
        if call.site is not None and call.site.ordinal in ordinals:
            found.append(call.site.ordinal)
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    return frozenset(found)


class Rewritten:
    """Mixin of the subclasses whose forward is generated; they can be copied and pickled."""

    _base: Type[nn.Module]
    _sources: Tuple[Source, Source]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the class by what it was made of."""
        parts: Any = super().__reduce_ex__(protocol)
        state = parts[2:]
        return (_restore, (self._base, self._sources), *state)


def rewrite(module: nn.Module, graphs: Graphs) -> None:
    """Give a module the forward of the graphs, in place."""
    if isinstance(module, fx.GraphModule):  # its graph is what it copies, pickles and prints
        module.graph = graphs[0]
        return
    base = getattr(type(module), "_base", type(module))
    module.__class__ = _subclass(base, (_source(graphs[0]), _source(graphs[1])))


def _restore(base: Type[nn.Module], sources: Tuple[Source, Source]) -> nn.Module:
    cls = _subclass(base, sources)
    return cls.__new__(cls)


def _subclass(base: Type[nn.Module], sources: Tuple[Source, Source]) -> Type[nn.Module]:
    training, inference = sources
    forward = compiled(training, base.__name__)
    if training[0] != inference[0]:
        in_inference = compiled(inference, base.__name__)
        forward = _by_mode(forward, in_inference)
    body = {
        "forward": forward,
        "_base": base,
        "_sources": sources,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (Rewritten, base), body)


def _by_mode(training: Callable[..., Any], inference: Callable[..., Any]) -> Callable[..., Any]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (training if self.training else inference)(self, *args, **kwargs)

    return forward


def compiled(source: Source, name: str) -> Callable[..., Any]:
    """Return the function of a source; debuggers and tracebacks find its text."""
    text, names = source
    file = f"<forward of {name} without its fused activations, {next(_numbers)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: Dict[str, Any] = {
        key: importlib.import_module(value.name) if isinstance(value, _Module) else value
        for key, value in names.items()
    }
    exec(compile(text, file, "exec"), scope)
    forward: Callable[..., Any] = scope["forward"]
    return forward
