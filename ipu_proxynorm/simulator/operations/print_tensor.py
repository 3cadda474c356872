"""Printing a tensor of the device at run time, in Poplar's layout."""

from __future__ import annotations

import sys
from typing import Any, Callable, List, NamedTuple

import torch

from .. import _impl
from ..trace.recorder import active

_FLOAT_FORMATS = ("auto", "fixed", "scientific", "none")


class _Layout(NamedTuple):
    summarise_threshold: int
    edge_items: int
    max_line_width: int
    digits: int
    float_format: str
    separator: str
    open_bracket: str
    close_bracket: str


def _number_format(tensor: torch.Tensor, layout: _Layout) -> Callable[[Any], str]:
    """Return how to write one element, all to the same width."""
    if not tensor.is_floating_point():
        width = max(len(str(value)) for value in tensor.flatten().tolist())
        return lambda value: str(value).rjust(width)
    largest = tensor.abs()[torch.isfinite(tensor)].max() if tensor.numel() else torch.zeros(())
    digits = layout.digits
    scientific = layout.float_format == "scientific" or (
        layout.float_format == "auto"
        and not 1e-4 <= max(float(largest), 1e-4) < 10 ** max(digits, 1)
    )
    if layout.float_format == "none" or digits == 0:
        return lambda value: f"{value:g}"
    if scientific:
        return lambda value: f"{value:.{digits - 1}e}"
    before = len(str(int(largest)))
    text = f".{max(digits - before, 0)}f"
    width = max((len(format(value, text)) for value in tensor.flatten().tolist()), default=0)
    return lambda value: format(value, text).rjust(width)


def _row(items: List[str], layout: _Layout, indent: str) -> str:
    """Return one row, broken into lines of at most the given width."""
    lines = [indent + layout.open_bracket]
    for position, item in enumerate(items):
        last = position == len(items) - 1
        piece = item + (layout.close_bracket if last else layout.separator)
        started = lines[-1].strip() not in ("", layout.open_bracket)
        if started and layout.max_line_width and len(lines[-1] + piece) > layout.max_line_width:
            lines[-1] = lines[-1].rstrip(" ")
            lines.append(indent + "  ")
        lines[-1] += piece
    return "\n".join(lines)


def _text(tensor: torch.Tensor, layout: _Layout, write: Callable, indent: str) -> str:
    if tensor.dim() == 0:
        return write(tensor.item())
    edge = layout.edge_items
    cut = layout.summarise_threshold > 0 and tensor.shape[0] > 2 * edge
    if tensor.dim() == 1:
        values = tensor.tolist()
        items = [write(value) for value in values]
        if cut and len(items) > layout.summarise_threshold:
            items = [*items[:edge], "...", *items[-edge:]]
        return _row(items, layout, indent)
    parts = [_text(part, layout, write, indent + " ") for part in tensor]
    inner = "\n".join(parts)
    return f"{indent}{layout.open_bracket}\n{inner}\n{indent}{layout.close_bracket}"


class _Printer:
    """Prints what it gets to stderr, where the device's output goes."""

    has_effect = True

    def __init__(self, title: str, layout: _Layout) -> None:
        self._title = title
        self._layout = layout
        self.__name__ = "ipu_print_tensor"

    def record(self, tensor: torch.Tensor) -> None:
        """Stay silent while the program is recorded."""

    def __call__(self, tensor: torch.Tensor) -> None:
        value = tensor.detach()
        value = value.float() if value.is_floating_point() else value
        text = _text(value, self._layout, _number_format(value, self._layout), "")
        sys.stderr.write(f"{self._title}: {text}\n" if self._title else text + "\n")
        sys.stderr.flush()


def _print(tensor: torch.Tensor, title: str, layout: _Layout) -> None:
    recorder = active()
    if recorder is None:
        _Printer(title, layout)(tensor)
    else:
        recorder.emit(_Printer(title, layout), [recorder.constant(tensor)], {})


def ipu_print_tensor(
    tensor: torch.Tensor,
    title: str = "",
    print_gradient: bool = True,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 80,
    digits: int = 4,
    float_format: str = "auto",
    separator: str = ", ",
    open_bracket: str = "(",
    close_bracket: str = ")",
) -> torch.Tensor:
    """Print a tensor at each run, and its gradient in the backward pass; return the tensor.

    Args:
        tensor: what to print.
        title: printed in front; the gradient's is ``title_gradient``.
        print_gradient: print the gradient too.
        summarise_threshold: more elements than this are cut to their edges; 0 for never.
        edge_items: elements kept at each edge.
        max_line_width: characters in a line; 0 for any number.
        digits: digits of a number; 0 for as many as it needs.
        float_format: "auto", "fixed", "scientific" or "none".
        separator: between elements.
        open_bracket: before a row.
        close_bracket: after a row.

    Raises:
        poptorch.Error: ``tensor`` is no tensor.

    """
    if not isinstance(tensor, torch.Tensor):
        raise _impl.createPoptorchError(
            f"ipu print tensor must take a torch.tensor argument. {type(tensor)} is not supported."
        )
    if float_format not in _FLOAT_FORMATS:
        raise _impl.createPoptorchError(
            f"float_format is {float_format!r}, but must be one of {', '.join(_FLOAT_FORMATS)}."
        )
    layout = _Layout(
        summarise_threshold,
        edge_items,
        max_line_width,
        digits,
        float_format,
        separator,
        open_bracket,
        close_bracket,
    )
    printed = tensor.clone()
    _print(printed, title, layout)
    if print_gradient and printed.requires_grad:
        gradient_title = f"{title}_gradient" if title else ""
        printed.register_hook(lambda gradient: _print(gradient, gradient_title, layout))
    return printed
