"""Everything CI runs: style and contracts once, types and tests in both environments."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
# The IPU's own environment (PopTorch 3.4 is built for it) and today's.
ENVIRONMENTS = {
    "ipu": ("3.8", ["torch==2.0.1", "torchvision==0.15.2"]),
    "today": ("3.11", ["torch==2.14.1", "torchvision==0.29.1"]),
}
nox.options.sessions = ["lint", "types", "tests"]
nox.options.reuse_existing_virtualenvs = True
nox.options.error_on_missing_interpreters = False


def find_interpreter(version: str) -> str | None:
    """Return a working ``python<version>``: on PATH, or among pyenv's, whose shims may refuse."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv")), "versions")
    candidates = [shutil.which(name), *sorted(map(str, pyenv.glob(f"{version}.*/bin/{name}")))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return None


def install(session: nox.Session, *requirements: str) -> None:
    """Install once per environment: again only when a requirement or ``setup.cfg`` changed."""
    key = hashlib.sha256((ROOT / "setup.cfg").read_bytes() + repr(requirements).encode())
    stamp = Path(session.virtualenv.location) / f"installed-{key.hexdigest()[:16]}"
    if not stamp.exists():
        session.install(*requirements)
        stamp.touch()


def environment(session: nox.Session, name: str, *tools: str) -> None:
    """Install one of the two environments, or say loudly that the machine has no such Python."""
    version, torch = ENVIRONMENTS[name]
    if find_interpreter(version) is None:
        session.skip(f"NOT RUN: no python{version} on this machine; environment '{name}' left out")
    install(session, *torch, "--editable", ".[test]", *tools)


def in_both(function):  # type: ignore[no-untyped-def]
    """Run ``function(session, name)`` once in each environment."""
    for name, (version, _) in ENVIRONMENTS.items():

        def run(session: nox.Session, name: str = name) -> None:
            function(session, name)

        run.__doc__ = function.__doc__
        nox.session(
            run,
            name=f"{function.__name__}-{name}",
            python=find_interpreter(version) or version,
            venv_backend="venv",
        )
    return function


@nox.session(python=sys.executable, venv_backend="venv")
def lint(session: nox.Session) -> None:
    """Format, style and import contracts."""
    install(session, "ruff>=0.17,<0.18", "import-linter>=2.16,<3")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports", env={"PYTHONPATH": str(ROOT)})
