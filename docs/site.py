"""Gives each page of the site the path that its file has in the repository.

So a link between pages, to README.md or to a recipe is right on a code host and on the site alike.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SHOWN = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "configs/**/*", "docs/**/*")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the theme's files, and what the site shows in place of ``docs_dir``'s."""
    found = sorted(path for pattern in SHOWN for path in ROOT.glob(pattern))
    pages = [
        File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path))
        for path in found
        if path.is_file() and path.suffix != ".pyc"
    ]
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *pages])
