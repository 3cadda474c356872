"""Files of weights alone: torch's state dicts (.pt, .pth) and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Mapping

import torch
from torch import Tensor

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import plain
from ipu_proxynorm.files.torch_file import NotPlain, read_torch
from ipu_proxynorm.files.whole import replacing

SAFETENSORS = ".safetensors"
#: Where training programs keep a state dict within what they save.
WRAPPERS = ("state_dict", "model_state_dict", "model")
#: What DistributedDataParallel and torch.compile put before each name.
PREFIXES = ("module.", "_orig_mod.")
#: What weights are of.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: How such files end.
SUFFIXES = (".pt", ".pth", SAFETENSORS)


def _safetensors() -> Any:
    """Return the library.

    Raises:
        UserError: it is not installed.
    """
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(
            "safetensors is not installed, which .safetensors files need: pip install "
            "safetensors, or use .pt"
        ) from error
    return safetensors


def check_target(path: Path, overwrite: bool = False) -> None:
    """Refuse a file that :func:`write_weights` would not write, before any work is done.

    Raises:
        UserError: unknown suffix, the library for it is missing, or the file exists and
            ``overwrite`` is False.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(
            f"OUT {str(path)!r} ends in {path.suffix or 'nothing'!r}: expected "
            f"{', '.join(SUFFIXES)}"
        )
    if path.suffix == SAFETENSORS:
        _safetensors()
    if path.exists() and not overwrite:
        raise UserError(f"OUT {str(path)!r} exists: choose another name, or pass --overwrite")


def write_weights(
    path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str], overwrite: bool = False
) -> None:
    """Write weights by name; the file is whole or not there.

    Args:
        path: ``.pt`` or ``.pth``: read with ``torch.load(path, weights_only=True)``;
            ``.safetensors``: with that library.
        weights: by name.
        metadata: what safetensors keeps beside them; the others have no place for it.
        overwrite: replace a file of that name.

    Raises:
        UserError: see :func:`check_target`, or the file cannot be written.
    """
    check_target(path, overwrite)
    values = plain(weights)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as stream:
            if path.suffix == SAFETENSORS:
                stream.write(_safetensors().torch.save(values, dict(metadata)))
            else:
                torch.save(values, stream)
    # torch's archive writer turns some of the system's errors into its own.
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"OUT {str(path)!r} cannot be written ({reason})") from error


def read_file(path: Path) -> Any:
    """Return what a file holds that should hold weights, without executing any of it.

    Raises:
        UserError: there is no such file, it is damaged, or holds more than plain values.
    """
    if not path.is_file():
        raise UserError(f"{str(path)!r}: no such file; expected weights: {', '.join(SUFFIXES)}")
    if path.suffix != SAFETENSORS:
        return read_torch(path, "file of weights", legacy=True)
    library = _safetensors()
    try:
        return library.torch.load(path.read_bytes())
    except (OSError, library.SafetensorError) as error:
        raise UserError(
            f"file of weights {str(path)!r} is truncated, damaged or no safetensors ({error})"
        ) from error


def is_state_dict(content: Any) -> bool:
    """Tell whether what a file holds is meant as tensors by name; `read_weights` looks at each."""
    return isinstance(content, Mapping) and any(isinstance(v, Tensor) for v in content.values())


def read_weights(path: Path) -> Dict[str, Tensor]:
    """Return the weights in a file by name.

    Raises:
        UserError: see :func:`read_file`, or it holds something else.
    """
    content = unwrapped(read_file(path))
    if not is_state_dict(content):
        keys = list(content)[:3] if isinstance(content, Mapping) else []
        kind = f"{', '.join(map(repr, keys))}, ..." if keys else type(content).__name__
        raise UserError(
            f"{str(path)!r} holds {kind} in the place of weights; expected a state_dict, tensors "
            f"by name: write it with torch.save(network.state_dict(), FILE)"
        )
    weights = dict(content)
    for name, value in weights.items():
        wrong = _why_no_weight(name, value)
        if wrong:
            raise UserError(f"{str(path)!r}: {name!r} {wrong}; expected tensors of floats by name")
    return weights


def unwrapped(content: Any) -> Any:
    """Return the state dict within what training programs save around it, by its plain names."""
    if isinstance(content, Mapping):
        content = next((content[k] for k in WRAPPERS if is_state_dict(content.get(k))), content)
    for prefix in PREFIXES:
        if is_state_dict(content) and all(str(name).startswith(prefix) for name in content):
            content = {str(name)[len(prefix) :]: value for name, value in content.items()}
    return content


def _why_no_weight(name: Any, value: Any) -> str:
    """Return what is wrong with an entry of a state dict; empty: nothing."""
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        return "is no name"
    if not isinstance(value, Tensor):
        return f"is no tensor, but of type {type(value).__name__}"
    if value.is_nested:
        return "is a nested tensor"
    if value.layout != torch.strided:
        return f"is sparse ({value.layout})"
    if value.is_meta:
        return "has a shape and no values (device meta)"
    if value.is_quantized:
        return "is quantized"
    if value.is_complex():
        return "is of complex numbers"
    counts = value.dim() == 0 and not value.is_floating_point()
    if value.dtype not in FLOATS and not counts:  # float8: its scales lie elsewhere
        return f"is of {str(value.dtype).replace('torch.', '')}"
    return ""


def read_metadata(path: Path) -> Dict[str, str]:
    """Return what a file of weights says of them; only safetensors can.

    Raises:
        UserError: see :func:`read_file`.
    """
    if path.suffix != SAFETENSORS or not path.is_file():
        return {}
    library = _safetensors()
    try:
        with library.safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, library.SafetensorError):
        return {}  # reading the weights says what is wrong


def may_be_checkpoint(path: Path) -> bool:
    """Tell whether a file is a run's checkpoint, or cannot be read: its reader then says why."""
    try:
        content = read_file(path)
    except NotPlain:
        return False
    except UserError:
        return True
    return isinstance(content, Mapping) and {"format", "content"} <= set(content)
