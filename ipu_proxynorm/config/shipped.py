"""The recipes that the package brings, by the names that the documentation gives them."""

from __future__ import annotations

from pathlib import Path
from typing import List, Union

#: The folder of the shipped recipes: the checkout's ``configs/``, or the installed package's.
SHIPPED = Path(__file__).resolve().parents[1] / "configs"


def recipes(folder: Union[str, Path] = SHIPPED) -> List[Path]:
    """Return the files below ``folder`` that are runs: all but those in a folder named ``base``."""
    files = sorted(Path(folder).rglob("*.yaml"))
    return [path for path in files if "base" not in path.relative_to(folder).parts[:-1]]


def recipe_names() -> List[str]:
    """Return the shipped recipes as the documentation names them: ``configs/quickstart.yaml``."""
    return [f"configs/{path.relative_to(SHIPPED).as_posix()}" for path in recipes()]


def located(path: Union[str, Path]) -> Path:
    """Return the file that CONFIG names: one that is there, or else a shipped recipe.

    ``configs/quickstart.yaml``, ``quickstart.yaml`` and ``quickstart`` name the same recipe from
    any folder. A name that leads nowhere is returned as it is.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    for name in (Path(*parts), Path(*parts).with_suffix(".yaml")) if parts else ():
        shipped = SHIPPED / name
        if ".." not in name.parts and shipped.is_file():
            return shipped
    return path
