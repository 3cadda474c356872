"""The command that installs an extra of this package."""

from __future__ import annotations

import importlib.metadata
import shlex
import sys
from pathlib import Path


def install_command(extra: str) -> str:
    """Return the command that installs what ``extra`` of the package needs, for this interpreter.

    pip finds an installed package by its name, an editable one too; a checkout that is not
    installed it finds by its folder.
    """
    try:
        importlib.metadata.distribution("ipu-proxynorm")
    except importlib.metadata.PackageNotFoundError:
        what = ["--editable", f"{Path(__file__).resolve().parents[1]}[{extra}]"]
    else:
        what = [f"ipu-proxynorm[{extra}]"]
    return shlex.join([sys.executable or "python", "-m", "pip", "install", *what])
