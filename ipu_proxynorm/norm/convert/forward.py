"""A module's forward without some of its activation calls, in the module's own place.

A functional call, or a module that a forward calls several times, cannot be taken away from
outside. The forward is traced by itself, all its submodules as they are, and the module becomes
an instance of a subclass of its class whose forward is the generated code: it stays the same
object, with its attributes, submodules, hooks and names in the state dict.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import linecache
from types import ModuleType
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Tuple, Type

import torch
from torch import fx, nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.norm.convert.activations import Known
from ipu_proxynorm.norm.convert.calls import Call
from ipu_proxynorm.norm.convert.trace import Looking, Traced, Untraceable, defaults, traced

# Source text of a function ``forward``, and the names that it uses.
Source = Tuple[str, Dict[str, Any]]
# An attribute that a forward reads, and its value then.
Attribute = Tuple[str, Any]
_numbers = itertools.count()


class Forward(NamedTuple):
    """A forward in training and in inference, and what its module's attributes must be for it."""

    training: fx.Graph
    inference: fx.Graph
    attributes: Tuple[Attribute, ...]


class _Module(NamedTuple):
    """A Python module by name, since modules cannot be pickled."""

    name: str


def without_activations(
    owner: nn.Module, erased: Dict[bool, FrozenSet[int]], known: Known
) -> Forward:
    """Return a forward in training and in inference, as graphs without some activations.

    Args:
        owner: the module.
        erased: by training or not, the ordinals of the activation calls to leave out.
        known: activation modules that the user named.

    Raises:
        Untraceable: the forward cannot be traced, or does not do the same in every pass.

    """
    if defaults(owner):
        optional = ", ".join(f"{name}={value}" for name, value in defaults(owner).items())
        raise Untraceable(f"its forward has optional arguments ({optional})")
    graphs: List[fx.Graph] = []
    attributes: Dict[str, Any] = {}
    for mode in (True, False):
        seen = _seen(owner, mode, known)
        if _erase(seen.graph, seen.calls, erased[mode]) != erased[mode]:
            raise Untraceable("traced alone, it calls other activations than within the network")
        graphs.append(seen.graph)
        attributes.update(_attributes(owner, seen.decisions.reads.get(id(owner), {})))
    forward = Forward(graphs[0], graphs[1], tuple(attributes.items()))
    try:
        for graph in graphs:
            compiled(_source(graph), type(owner).__name__)
    except Exception as error:  # of a constant that Python code cannot say
        raise Untraceable(f"no code can be written of it: {error}") from error
    return forward


def _seen(owner: nn.Module, training: bool, known: Known) -> Traced:
    """Trace a forward twice, with gradients and without, and see that it is all in its graph."""
    looking, codes = Looking(), []
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            seen = traced(owner, looking, training, known, buffers=True)
        codes.append(str(seen.graph))
        _refuse(owner, seen, looking)
    if codes[0] != codes[1]:
        raise Untraceable("it is another one in its next pass, or without gradients")
    return seen


def _refuse(owner: nn.Module, seen: Traced, looking: Looking) -> None:
    """Raise where a forward does what no graph holds."""
    reasons = seen.decisions.reasons.get(id(owner), "")
    if reasons:
        raise Untraceable(f"it {reasons}")
    if seen.decisions.changed:
        raise Untraceable(f"it changes {', '.join(sorted(seen.decisions.changed))}")
    for node in seen.graph.nodes:
        if node.op == "get_attr" and str(node.target).startswith("_tensor_constant"):
            raise Untraceable("it makes or takes a tensor that no module holds")
    for name, module in owner.named_modules():
        if module is not owner and "training" in seen.decisions.reads.get(id(module), {}):
            raise Untraceable(f"it asks whether {name} is in training")


def _attributes(owner: nn.Module, reads: Dict[str, Any]) -> Dict[str, Any]:
    """Return the attributes, read by a forward, whose values a graph holds."""
    return {
        name: value
        for name, value in reads.items()
        if name != "training" and _is_plain(value) and not isinstance(owner, fx.GraphModule)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, type(None)))


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
    _attributes: Tuple[Attribute, ...]

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Name the class by what it was made of."""
        parts: Any = super().__reduce_ex__(protocol)
        state = parts[2:]
        return (_restore, (self._base, self._sources, self._attributes), *state)

    def _check(self) -> None:
        """Refuse to run with other attributes than those that the code was made for."""
        for name, value in self._attributes:
            now = getattr(self, name, None)
            if type(now) is not type(value) or now != value:
                raise UserError(
                    f"{type(self).__name__}.{name}={now!r}: the forward was rewritten by "
                    f"convert_norms when it was {value!r}; set it before the conversion"
                )


def rewrite(module: nn.Module, forward: Forward) -> None:
    """Give a module another forward, in place."""
    if isinstance(module, fx.GraphModule):  # its graph is what it copies, pickles and prints
        module.graph = forward.training
        return
    base = getattr(type(module), "_base", type(module))
    sources = (_source(forward.training), _source(forward.inference))
    module.__class__ = _subclass(base, sources, forward.attributes)


def _restore(
    base: Type[nn.Module], sources: Tuple[Source, Source], attributes: Tuple[Attribute, ...] = ()
) -> nn.Module:
    cls = _subclass(base, sources, attributes)
    return cls.__new__(cls)


def _subclass(
    base: Type[nn.Module], sources: Tuple[Source, Source], attributes: Tuple[Attribute, ...]
) -> Type[nn.Module]:
    training, inference = sources
    forward = compiled(training, base.__name__)
    if training[0] != inference[0]:
        in_inference = compiled(inference, base.__name__)
        forward = _by_mode(forward, in_inference)
    body = {
        "forward": _checked(forward) if attributes else forward,
        "_base": base,
        "_sources": sources,
        "_attributes": attributes,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return type(base.__name__, (Rewritten, base), body)


def _checked(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def checked(self: Any, *args: Any, **kwargs: Any) -> Any:
        self._check()
        return forward(self, *args, **kwargs)

    return checked


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
