"""What reads what in a network's forward pass: traced by torch.fx, or recorded on an example."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import inspect
import itertools
import warnings
from typing import (
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Tuple,
)

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from ipu_proxynorm.nested import tensors_in
from ipu_proxynorm.norm.activations import Activation
from ipu_proxynorm.norm.convert.activations import Known, of_function, of_module
from ipu_proxynorm.norm.convert.calls import OUTPUT, Call, Site
from ipu_proxynorm.norm.convert.decisions import Decisions
from ipu_proxynorm.norm.convert.state import State

# Tell something about a tensor and read none of its values.
_METADATA = ("size", "dim", "numel", "stride", "type", "get_device", "is_contiguous", "nelement")


class Untraceable(Exception):
    """The reason why a forward cannot be traced."""


@dataclasses.dataclass
class Looking:
    """Which modules are looked into.

    Attributes:
        into: the ``id`` of those that are.
        closed: of those that are not, though they hold norms: why.
        outer: in whose forward the outermost module is called, if that is not looked into.

    """

    into: FrozenSet[int] = frozenset()
    closed: Dict[int, str] = dataclasses.field(default_factory=dict)
    outer: str = ""

    def is_leaf(self, module: nn.Module) -> bool:
        """Whether a module is taken as one call."""
        return id(module) not in self.into or id(module) in self.closed

    def modules(self, root: nn.Module) -> Dict[int, nn.Module]:
        """Return the modules of a network that are looked into, the outermost among them."""
        return {id(m): m for m in root.modules() if m is root or not self.is_leaf(m)}


class Traced(NamedTuple):
    """A forward's graph, the call of each node, and what the forward decides by itself."""

    graph: fx.Graph
    calls: Dict[fx.Node, Call]
    decisions: Decisions


class Frames:
    """Whose forward is running, and how many activations it has called."""

    def __init__(
        self, root: nn.Module, training: bool, known: Known, decisions: Decisions, looking: Looking
    ) -> None:
        self.training, self.known = training, known
        self.decisions, self.looking = decisions, looking
        self.stack: List[Tuple[nn.Module, Iterator[int]]] = [(root, itertools.count())]

    def enter(self, module: nn.Module) -> None:
        """Say that a module's forward begins."""
        self.decisions.enter(module)
        self.stack.append((module, itertools.count()))

    def leave(self) -> None:
        """Say that the innermost forward ends."""
        self.decisions.leave()
        self.stack.pop()

    def call(
        self, text: str, module: Optional[nn.Module], activation: Optional[Activation]
    ) -> Call:
        """Return a call by the innermost forward."""
        owner, ordinals = self.stack[-1]
        site = None if activation is None else Site(owner, self.training, next(ordinals))
        return Call(text, owner, module, activation, site)

    def module(self, module: nn.Module, keywords: Dict[str, Any]) -> Call:
        """Return the call of a module that is not looked into."""
        call = self.call(type(module).__name__, module, of_module(module, self.known))
        call.keywords = tuple(keywords)
        call.opaque = id(module) in self.looking.closed
        return call

    def output(self, root: nn.Module) -> Call:
        """Return the call that reads what the forward returns."""
        outer = self.looking.outer
        return Call(f"the forward of {outer}" if outer else OUTPUT, root, opaque=bool(outer))

    def function(self, function: Any, arguments: Sequence[Any], keywords: Dict[str, Any]) -> Call:
        """Return the call of a function, or of a tensor's method."""
        name = function if isinstance(function, str) else getattr(function, "__name__", "function")
        name = name[2:-2] if name.startswith("__") and name.endswith("__") else name
        others = {key: value for key, value in keywords.items() if key != "input"}
        given = arguments if "input" in keywords else arguments[1:]
        return self.call(name, None, of_function(function, given, others))


class Tracer(fx.Tracer):
    """Records a graph, looking into the modules that ``is_leaf`` denies, and places its calls."""

    def __init__(self, frames: Frames) -> None:
        super().__init__()
        self.frames, self.is_leaf = frames, frames.looking.is_leaf
        self.calls: Dict[fx.Node, Call] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is called as it is."""
        return self.is_leaf(m)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Look into a module, or not, knowing whose forward runs."""
        if self.is_leaf(m):
            return super().call_module(m, forward, args, kwargs)
        self.frames.enter(m)
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self.frames.leave()

    def create_node(
        self,
        kind: str,
        target: Any,
        args: Any,
        kwargs: Any,
        name: Any = None,
        type_expr: Any = None,
    ) -> fx.Node:  # type: ignore[override]
        """Place a new node among the calls."""
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        if kind == "call_module":
            call = self.frames.module(self.root.get_submodule(target), kwargs)
        elif kind in ("call_function", "call_method"):
            call = self.frames.function(target, args, kwargs)
        else:
            call = Call(kind, self.root) if kind != "output" else self.frames.output(self.root)
        if not _tells_metadata(node):
            for read in (n for n in _nodes((args, kwargs)) if n in self.calls):
                self.calls[read].readers.append(call)
        self.calls[node] = call
        return node


def _nodes(values: Any) -> List[fx.Node]:
    found: List[fx.Node] = []
    fx.node.map_arg(values, found.append)  # type: ignore[arg-type]
    return found


def _tells_metadata(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _METADATA
    return bool(node.target is builtins.getattr and node.args[1] != "data")


def traced(
    root: nn.Module, looking: Looking, training: bool, known: Known, buffers: bool = False
) -> Traced:
    """Trace ``root.forward``; nothing that it keeps, draws or counts meanwhile stays.

    Args:
        root: the module.
        looking: which modules are looked into.
        training: trace it in training, or in inference.
        known: activation modules that the user named.
        buffers: show the forward proxies of its buffers, too, not their values.

    Raises:
        Untraceable: it depends on values, or on its arguments otherwise than by computing.

    """
    decisions, state = Decisions(root, runs=False), State(root)
    tracer = Tracer(Frames(root, training, known, decisions, looking))
    tracer.proxy_buffer_attributes = buffers
    try:
        with mode(root, training), warnings.catch_warnings(), decisions.watching():
            warnings.simplefilter("ignore")
            graph = tracer.trace(root, concrete_args=defaults(root) or None)
            decisions.look()
        decisions.kept(state, looking.modules(root))
    except Exception as error:  # whatever a forward raises when it is given fx's proxies
        text = " ".join(str(error).split())
        raise Untraceable(f"{type(error).__name__}: {text[:200]}") from error
    finally:
        state.put_back()
    return Traced(graph, tracer.calls, decisions)


def defaults(module: nn.Module) -> Dict[str, Any]:
    """Return the arguments of a module's forward that may be left out, with their defaults."""
    parameters = inspect.signature(module.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


@contextlib.contextmanager
def mode(root: nn.Module, training: bool) -> Iterator[None]:
    """Put all modules into training or inference, and each back into its own mode at the end."""
    modes = [(module, module.training) for module in root.modules()]
    try:
        for module, _ in modes:  # not by train(), of which a network may have its own
            module.training = training
        yield
    finally:
        for module, own in modes:
            module.training = own


class _Recorder(TorchFunctionMode):
    """Records the calls of functions, and, by hooks, of modules; results are told by identity."""

    def __init__(self, frames: Frames) -> None:
        super().__init__()
        self.frames, self.is_leaf = frames, frames.looking.is_leaf
        self.calls: List[Call] = []
        self.source: Dict[int, Call] = {}
        self.alive: List[Any] = []  # so that no two results have one identity
        self.within_leaf = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not self.within_leaf and tensors_in(result):
            self.add(self.frames.function(func, args, kwargs), (args, kwargs), result)
        return result

    def add(self, call: Call, read: Any, result: Any) -> None:
        self.calls.append(call)
        for tensor in tensors_in(read):
            if id(tensor) in self.source:
                self.source[id(tensor)].readers.append(call)
        for tensor in tensors_in(result):
            self.alive.append(tensor)
            self.source[id(tensor)] = call

    def before(self, module: nn.Module, args: Any) -> None:
        if self.is_leaf(module):
            self.frames.decisions.pause()
            self.within_leaf += 1
        elif not self.within_leaf:
            self.frames.enter(module)

    def after(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.is_leaf(module):
            self.within_leaf -= 1
            self.frames.decisions.go_on()
            if not self.within_leaf:
                self.add(self.frames.module(module, kwargs), (args, kwargs), output)
        elif not self.within_leaf:
            self.frames.leave()


def recorded(
    root: nn.Module, looking: Looking, training: bool, known: Known, example: Sequence[Any]
) -> Tuple[List[Call], Decisions]:
    """Return the calls of ``root(*example)``, after which the network is as it was.

    Raises:
        Untraceable: the network fails on the example.

    """
    decisions, state = Decisions(root, runs=True), State(root, parameters=True)
    recorder = _Recorder(Frames(root, training, known, decisions, looking))
    modules = [module for module in root.modules() if module is not root]
    try:
        hooks: List[Any] = [m.register_forward_pre_hook(recorder.before) for m in modules]
        hooks += [m.register_forward_hook(recorder.after, with_kwargs=True) for m in modules]
        try:
            with mode(root, training), torch.no_grad(), decisions.watching(), recorder:
                result = root(*example)
        finally:
            for hook in hooks:
                hook.remove()
        decisions.look()
        decisions.kept(state, looking.modules(root))
    except Exception as error:
        text = " ".join(str(error).split())
        name = "training" if training else "inference"
        raise Untraceable(
            f"on the example, in {name}: {type(error).__name__}: {text[:200]}"
        ) from error
    finally:
        state.put_back()
    recorder.add(recorder.frames.output(root), result, None)
    return recorder.calls, decisions
