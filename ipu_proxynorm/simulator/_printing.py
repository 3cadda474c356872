"""Modules as text, with the blocks that begin at them."""

from __future__ import annotations

import builtins
from typing import Any

import torch

_global_print = builtins.print


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def module_repr(m: torch.nn.Module) -> str:
    """Return torch's text of a module with its forward pre-hooks, blocks among them, in front."""
    own = m.extra_repr().split("\n") if m.extra_repr() else []
    children = [
        f"({name}): {_indented(module_repr(module))}"
        for name, module in m._modules.items()
        if module is not None
    ]
    hooks = "".join(f"{hook!r} " for hook in m._forward_pre_hooks.values())
    head = f"{hooks}{m._get_name()}("
    if len(own) == 1 and not children:
        return f"{head}{own[0]})"
    lines = own + children
    return head + ("\n  " + "\n  ".join(lines) + "\n" if lines else "") + ")"


def print(m: Any) -> None:
    """Print a module with its blocks, or anything else as it is."""
    _global_print(module_repr(m) if isinstance(m, torch.nn.Module) else m)
