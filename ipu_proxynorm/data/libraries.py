"""Libraries that take a second to import: imported when they are first needed."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.exhausted import exhausted


@functools.lru_cache(maxsize=None)
def library(name: str) -> Any:
    """Return the module of that name.

    torchvision's own extension for reading image files is not used here; its warning where that
    cannot be loaded is not printed.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Failed to load image Python extension")
            return importlib.import_module(name)
    except Exception as error:  # half imported, it may fail in any way
        failure = ImportError(f"{name}: {type(error).__name__}: {error}")
        package = name.partition(".")[0]
        raise UserError(
            exhausted(error)
            or exhausted(failure)
            or f"the library {package} cannot be imported ({failure}); install it again"
        ) from error


def transforms() -> Any:
    """Return ``torchvision.transforms``; see `library`."""
    return library("torchvision.transforms")
