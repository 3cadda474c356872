"""The compiled program: a fixed list of torch operations, turned into one Python function."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import (
    AbstractSet,
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterator,
    List,
    Mapping,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

import torch

from .origins import Origin


class Slot(NamedTuple):
    """A tensor of the program, by number."""

    number: int


@dataclass(frozen=True)
class Operation:
    """One call of a torch operator.

    ``args`` and ``kwargs`` hold `Slot` where the call takes a tensor; ``outputs`` has the structure
    that the operator returns, with a `Slot` for each new tensor and None for anything else.
    ``reads`` and ``makes`` say what was traced: shape and type of what the operation reads, and of
    what it returns or writes to. Where they say nothing, nothing is checked.
    """

    function: Callable
    args: Sequence[Any]
    kwargs: Dict[str, Any]
    outputs: Any
    origin: Origin
    keeps: bool = False  # writes to a tensor, or has an effect outside the program
    random: bool = False
    reads: Mapping[Slot, Any] = field(default_factory=dict)
    makes: Mapping[Slot, Any] = field(default_factory=dict)

    @functools.cached_property
    def given(self) -> FrozenSet[Slot]:
        """The slots in its arguments."""
        return frozenset((*slots_in(self.args), *slots_in(self.kwargs)))

    @functools.cached_property
    def made(self) -> Tuple[Slot, ...]:
        """The slots of what it returns, in order."""
        return tuple(slots_in(self.outputs))

    @property
    def exchanges(self) -> bool:
        """Tell whether replicas do this together: it is a collective of one tensor."""
        return getattr(self.function, "exchanges", False)

    @property
    def name(self) -> str:
        """The operator's name without namespace and overload."""
        schema = getattr(self.function, "_schema", None)
        return schema.name.split("::")[-1] if schema else self.function.__name__


@dataclass
class Block:
    """Operations in order, and the tensors that they hand on."""

    operations: List[Step] = field(default_factory=list)
    results: List[Slot] = field(default_factory=list)


@dataclass
class Branch:
    """Runs one of two blocks, depending on a tensor's value at run time."""

    condition: Slot
    then: Block
    otherwise: Block
    outputs: List[Slot]
    origin: Origin


@dataclass
class Loop:
    """Runs a block ``count`` times; its results are the next turn's carried tensors."""

    count: int
    body: Block
    initial: List[Slot]
    carried: List[Slot]
    origin: Origin

    @property
    def outputs(self) -> List[Slot]:
        """After the last turn the carried tensors are the loop's results."""
        return self.carried


Step = Union[Operation, Branch, Loop]


def slots_in(tree: Any) -> List[Slot]:
    """Return the slots in nested arguments, in order."""
    found: List[Slot] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: List[Slot]) -> None:
    if isinstance(tree, Slot):
        found.append(tree)
    elif isinstance(tree, (list, tuple)):
        for element in tree:
            _collect(element, found)
    elif isinstance(tree, dict):
        for element in tree.values():
            _collect(element, found)


def uses(step: Step) -> AbstractSet[Slot]:
    """Return the slots that a step reads and does not make itself."""
    if isinstance(step, Operation):
        return step.given
    if isinstance(step, Branch):
        return {step.condition} | _uses_of(step.then) | _uses_of(step.otherwise)
    return set(step.initial) | (_uses_of(step.body) - set(step.carried))


def makes(step: Step) -> Sequence[Slot]:
    """Return the slots of what a step returns, in order."""
    return step.made if isinstance(step, Operation) else step.outputs


def _uses_of(block: Block) -> Set[Slot]:
    found = set(block.results)
    made: Set[Slot] = set()
    for step in block.operations:
        found |= uses(step)
        made.update(makes(step))
    return found - made


def operations_in(block: Block) -> Iterator[Operation]:
    """Yield every operation, those of nested blocks included."""
    for step in block.operations:
        if isinstance(step, Operation):
            yield step
        elif isinstance(step, Branch):
            yield from operations_in(step.then)
            yield from operations_in(step.otherwise)
        else:
            yield from operations_in(step.body)


def depends_on(block: Block, sources: Set[Slot], targets: Set[Slot]) -> bool:
    """Tell whether any of ``targets`` is computed from any of ``sources``."""
    reached = set(sources)
    for step in block.operations:
        if uses(step) & reached:
            reached.update(makes(step))
            if isinstance(step, Operation) and step.keeps and step.args:
                reached.update(slots_in(step.args[:1]))  # in place: the first argument changes
    return bool(reached & targets)


def _write_only(block: Block, constants: Set[Slot]) -> Set[Slot]:
    """Return the constants that the block writes to and nothing of it reads, not even a view."""
    read = set(block.results)
    for step in block.operations:
        read.update(_read_besides_target(step) if _writes_to_first(step) else uses(step))
    return constants - read


def _read_besides_target(step: Step) -> List[Slot]:
    """Return what an operation that writes to its first argument reads; that if it does twice."""
    assert isinstance(step, Operation)
    first, *others = slots_in((step.args, step.kwargs))
    return [first, *others] if first in others else others


def _writes_to_first(step: Step) -> bool:
    """Tell whether all that a step does is write to its first argument."""
    if not isinstance(step, Operation) or not step.keeps or step.random:
        return False
    has_effect = getattr(step.function, "has_effect", False)
    in_place = step.name.endswith("_") and not has_effect and not makes(step)
    return in_place and bool(step.args) and isinstance(step.args[0], Slot)


def without_dead_code(block: Block, constants: Optional[Set[Slot]] = None) -> Block:
    """Return the block without operations whose results nothing needs.

    Args:
        block: the program.
        constants: what each micro-batch finds as it was: what is written there alone is not needed.

    """
    needed = set(block.results)
    unread = _write_only(block, constants or set())
    kept: List[Step] = []
    for step in reversed(block.operations):
        if isinstance(step, Operation):
            if _writes_to_first(step) and step.args[0] in unread:
                continue
            if not step.keeps and needed.isdisjoint(step.made):
                continue
        kept.append(step)
        needed |= uses(step)
    return Block(kept[::-1], list(block.results))


class _Writer:
    """Writes the Python source of a block."""

    def __init__(self) -> None:
        self.lines: List[str] = []
        self.names: Dict[str, Any] = {}
        self._bound: Dict[int, str] = {}

    def bind(self, value: Any) -> str:
        """Return a name that stands for ``value`` in the source."""
        name = self._bound.get(id(value))
        if name is None:
            name = self._bound[id(value)] = f"k{len(self.names)}"
            self.names[name] = value
        return name

    def expression(self, tree: Any) -> str:
        """Return the source of an argument."""
        if isinstance(tree, Slot):
            return f"v{tree.number}"
        if tree is None or isinstance(tree, (bool, int)):
            return repr(tree)
        if isinstance(tree, list):
            return "[" + ", ".join(map(self.expression, tree)) + "]"
        if type(tree) is tuple:
            return "(" + "".join(self.expression(element) + ", " for element in tree) + ")"
        return self.bind(tree)

    def target(self, outputs: Any) -> str:
        """Return the left side of an assignment."""
        if isinstance(outputs, Slot):
            return f"v{outputs.number}"
        if isinstance(outputs, (list, tuple)):
            return "(" + "".join(self.target(output) + ", " for output in outputs) + ")"
        return "_"

    def write(self, block: Block, indent: str, keep: Set[Slot], free: bool) -> None:
        """Write a block; with ``free``, names are deleted after their last use."""
        last: Dict[Slot, int] = {}
        if free:
            for position, step in enumerate(block.operations):
                for slot in (*uses(step), *makes(step)):
                    last[slot] = position
        ends: Dict[int, List[Slot]] = {}
        for slot, position in last.items():
            if slot not in keep:
                ends.setdefault(position, []).append(slot)
        for position, step in enumerate(block.operations):
            self._write_step(step, indent)
            if position in ends:
                self.lines.append(
                    indent + "del " + ", ".join(f"v{s.number}" for s in ends[position])
                )

    def _write_step(self, step: Step, indent: str) -> None:
        if isinstance(step, Operation):
            self._write_operation(step, indent)
        elif isinstance(step, Branch):
            self.lines.append(f"{indent}if v{step.condition.number}:")
            self._write_nested(step.then, step.outputs, indent + " ")
            self.lines.append(f"{indent}else:")
            self._write_nested(step.otherwise, step.outputs, indent + " ")
        else:
            for carried, initial in zip(step.carried, step.initial):
                self.lines.append(f"{indent}v{carried.number} = v{initial.number}")
            self.lines.append(f"{indent}for _ in range({step.count}):")
            self._write_nested(step.body, step.carried, indent + " ")

    def _write_nested(self, block: Block, outputs: Sequence[Slot], indent: str) -> None:
        self.lines.append(f"{indent}pass")
        self.write(block, indent, set(), free=False)
        if outputs:  # together, as a result may be another's carried tensor
            names = ", ".join(f"v{slot.number}" for slot in outputs)
            values = ", ".join(f"v{slot.number}" for slot in block.results)
            self.lines.append(f"{indent}{names} = {values}")

    def _write_operation(self, step: Operation, indent: str) -> None:
        arguments = [self.expression(argument) for argument in step.args]
        arguments += [f"{name}={self.expression(value)}" for name, value in step.kwargs.items()]
        call = f"{self.bind(step.function)}({', '.join(arguments)})"
        if step.exchanges:
            call = f"(yield {self.bind(step.function)}, {arguments[0]})"
        has_output = bool(makes(step))
        assign = f"{self.target(step.outputs)} = " if has_output else ""
        self.lines.append(indent + assign + call)


def to_function(
    block: Block, inputs: Sequence[Slot], constants: Dict[Slot, torch.Tensor]
) -> Callable[..., List[torch.Tensor]]:
    """Return a function of the ``inputs`` that runs the block and returns its results.

    With an operation that exchanges, it is a generator function: it yields the collective and this
    replica's tensor, is sent the result, and returns the block's results in the end.

    Args:
        block: the program.
        inputs: what the function takes, in order; the caller keeps these alive.
        constants: tensors that are part of the program. One that the program writes to is copied at
            the start of each run.

    """
    writer = _Writer()
    written = {
        slot
        for operation in operations_in(block)
        if operation.keeps
        for slot in slots_in((operation.args, operation.kwargs))
    }
    used = _uses_of(block)
    for slot, value in constants.items():
        if slot in used:
            copied = ".clone()" if slot in written else ""
            writer.lines.append(f" v{slot.number} = {writer.bind(value)}{copied}")
    keep = {*inputs, *block.results, *constants}
    writer.write(block, " ", keep, free=True)
    results = "".join(f"v{slot.number}, " for slot in block.results)
    header = f"def run({', '.join(f'v{slot.number}' for slot in inputs)}):"
    source = "\n".join([header, *writer.lines, f" return [{results}]"])
    namespace: Dict[str, Any] = dict(writer.names)
    exec(compile(source, "<simulated program>", "exec"), namespace)
    return namespace["run"]
