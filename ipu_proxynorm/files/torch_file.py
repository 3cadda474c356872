"""Reading files of torch's without executing what they contain."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ipu_proxynorm.errors import UserError


class NotPlain(UserError):
    """A file holds more than tensors and plain values."""


def read_torch(path: Path, what: str, legacy: bool = False) -> Any:
    """Return what ``torch.save`` wrote to ``path``: nothing but tensors and plain values.

    Args:
        path: the path of the file.
        what: it is expected to be, in the messages.
        legacy: read files of torch 1.5 and before, too, which carry no checksums.

    Raises:
        UserError: it is damaged or of another kind.
        NotPlain: it holds something else.
    """
    name = f"{what} {str(path)!r}"
    try:
        if not legacy or zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()  # checks every part against its checksum
            if damaged is not None:
                raise UserError(f"{name} is damaged (in {damaged!r})")
        with warnings.catch_warnings():
            # torch 2.0.1's reader warns of torch's own storage class.
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise NotPlain(
            f"{name} is not a {what}: it holds {_stranger(error)}, which was not executed; "
            f"expected tensors and plain values"
        ) from error
    except Exception as error:  # damage leads the readers to errors of every kind
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name} is truncated, damaged or not a {what} ({first})") from error


def _stranger(error: pickle.UnpicklingError) -> str:
    """Return what torch's reader has refused, in words; the message is all that it gives."""
    found = re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error))
    if found is None:
        return "something else"
    return "quantized tensors" if found[1].endswith("_rebuild_qtensor") else found[1]
