"""torchvision, imported when it is first needed: that takes a second."""

from __future__ import annotations

import functools
import warnings
from typing import Any


@functools.lru_cache(maxsize=None)
def transforms() -> Any:
    """Return the module ``torchvision.transforms``.

    Its own extension for reading image files is not used here, and torchvision's warning where that
    cannot be loaded is not printed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to load image Python extension")
        import torchvision.transforms
    return torchvision.transforms
