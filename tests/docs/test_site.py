"""The documentation's site; what `mkdocs build --strict` cannot see."""

import importlib
import importlib.util
from pathlib import Path

import pytest

PAGES = sorted(Path("docs/reference").glob("[a-z]*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_function_of_its_modules_name_is_in_the_reference(page):
    """The reference of a package takes such a name for the module."""
    package = f"ipu_proxynorm.{page.stem}"
    module = importlib.import_module(package)
    text = page.read_text(encoding="utf-8")
    assert f"\n::: {package}\n" in text
    for name in getattr(module, "__all__", ()):
        public = getattr(module, name)
        if not callable(public) or not hasattr(module, "__path__"):
            continue
        if importlib.util.find_spec(f"{package}.{name}"):
            line = f"::: {public.__module__}.{name}"
            assert f"\n{line}\n" in text, f"{page}: add {line!r}, as for others there"
