"""The calls of a network's forward pass: what each is, and what is done with its result."""

from __future__ import annotations

import dataclasses
from typing import List, NamedTuple, Optional, Sequence, Set

from torch import nn

from ipu_proxynorm.norm.activations import Activation

FUNCTIONAL_NORMS = ("batch_norm", "group_norm", "layer_norm", "instance_norm")
# The call that reads what a network returns.
OUTPUT = "the network's output"
# May return the very tensor that they are given, or a view of it.
_PASSING = (
    *("dropout", "stochastic_depth", "drop_path", "contiguous", "flatten", "reshape", "view"),
    *("getitem", "chunk", "split", "permute", "transpose", "unflatten", "squeeze", "getattr"),
)
# torch.fx shows ``x += y`` as an addition: any may be in place.
_IN_PLACE = frozenset(
    i + name for name in ("add", "sub", "mul", "truediv", "div") for i in ("", "i")
)
# Return what they are given in other places.
_MOVING = (
    *("cat", "concat", "stack", "unsqueeze", "reshape_as", "view_as", "expand", "roll", "pad"),
    *("interpolate", "pixel_shuffle"),
)
_HANDING_ON = (nn.Flatten, nn.Unflatten, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle)
# Compute, but are no activations. ``mul`` is not among them: ``x * relu6(x + 3)`` is one in parts.
_MIXING = frozenset(
    (
        *(_IN_PLACE - {"mul", "imul"}),
        *("mean", "sum", "conv2d", "linear", "matmul", "bmm", *FUNCTIONAL_NORMS, OUTPUT),
    )
)


class Site(NamedTuple):
    """A place in somebody's forward where an activation is called: the ``ordinal``-th one of it."""

    owner: nn.Module
    training: bool
    ordinal: int


@dataclasses.dataclass(eq=False)
class Call:
    """One call during a forward pass.

    Attributes:
        text: what is called, for messages.
        owner: the module in whose forward it is called.
        module: the module called, where it is one that is not looked into.
        activation: what it computes, where that is an activation.
        site: where it is called, where it is an activation.
        readers: the calls that read its result; a call that reads it twice counts twice.
        keywords: names of the arguments that it is given by name.
        opaque: it stands for a forward that is not looked into, and may do anything.

    """

    text: str
    owner: nn.Module
    module: Optional[nn.Module] = None
    activation: Optional[Activation] = None
    site: Optional[Site] = None
    readers: List[Call] = dataclasses.field(default_factory=list)
    keywords: Sequence[str] = ()
    opaque: bool = False

    def following(self) -> List[Call]:
        """Return the calls that read its result, looking through ``nn.Identity``."""
        found: List[Call] = []
        for reader in self.readers:
            passes = isinstance(reader.module, nn.Identity)
            found.extend(reader.following() if passes else [reader])
        return found

    def is_written(self) -> bool:
        """Whether something may write into its result in place."""
        for reader in self.readers:
            name, module = reader.text, reader.module
            if reader.opaque:
                return True
            in_place = name in _IN_PLACE or name.endswith("_")
            if in_place or getattr(module, "inplace", False):
                return True
            dropping = module is not None and drops(module)
            if (name in _PASSING or dropping) and reader.is_written():
                return True
        return False

    def may_activate(self) -> bool:
        """Whether it is, or hands its values on to, what may be an activation, known or not.

        Not so: layers with parameters (PReLU aside), and what adds, averages or multiplies
        matrices. Views, concatenation, pooling and dropping hand values on. Any other function,
        and any other module, may be one.
        """
        seen: Set[int] = set()
        waiting = [self]
        while waiting:
            call = waiting.pop()
            if id(call) in seen:
                continue
            seen.add(id(call))
            if call.activation is not None or call._may_compute():
                return True
            if call._hands_on():
                waiting.extend(call.readers)
        return False

    def _may_compute(self) -> bool:
        """Whether it may itself be an activation that is not known."""
        module, name = self.module, self.text.rstrip("_")
        if self.opaque:
            return True
        if module is None:
            return not (self._hands_on() or name in _MIXING)
        kinds = {cls.__module__ for cls in type(module).__mro__}
        if "torch.nn.modules.activation" in kinds:  # PReLU and the like
            return True
        return not self._hands_on() and next(module.parameters(), None) is None

    def _hands_on(self) -> bool:
        """Whether its values are those that it reads, in another shape, or some of them."""
        module, name = self.module, self.text.rstrip("_")
        if module is None:
            return name in (*_PASSING, *_MOVING) or "pool" in name or "drop" in name
        return isinstance(module, _HANDING_ON) or drops(module) or "Pool" in name


def drops(module: nn.Module) -> bool:
    """Whether a module returns what it is given, or drops some of it."""
    name = type(module).__name__
    return "Drop" in name or name in ("StochasticDepth", "Identity")
