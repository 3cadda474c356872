"""Everything CI runs: style, contracts and docs once, types and tests in both environments."""

from __future__ import annotations

import configparser
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
# The IPU's own environment (PopTorch 3.4, the last one, is built for it) and today's.
IPU = ("3.8", ["torch==2.0.1", "torchvision==0.15.2"])
TODAY = ("3.11", ["torch==2.14.1", "torchvision==0.29.1"])

nox.options.sessions = ["lint", "docs", "types-ipu", "types-today", "tests-ipu", "tests-today"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "venv"
# A missing interpreter is an error where CI is set, and elsewhere a warning and a skipped session.


def interpreter(version: str) -> str:
    """Return a ``python<version>`` that runs: on PATH, or pyenv's own, whose shims may refuse."""
    name = f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates = [shutil.which(name), *sorted(map(str, pyenv.glob(f"{version}.*/bin/{name}")))]
    for candidate in filter(None, candidates):
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return version


def install(session: nox.Session, *requirements: str) -> None:
    """Install once: again only when the requirements or the project's metadata changed."""
    wanted = repr(requirements).encode()
    for name in ("setup.cfg", "pyproject.toml"):
        wanted += (ROOT / name).read_bytes()
    stamp = Path(
        session.virtualenv.location, f"installed-{hashlib.sha256(wanted).hexdigest()[:16]}"
    )
    if not stamp.exists():
        # Python compiles what is imported, once; of what torch brings that is a small part.
        session.install("--no-compile", *requirements)
        stamp.touch()


@nox.session(python=interpreter(TODAY[0]))
def lint(session: nox.Session) -> None:
    """Check format, style and the import contracts."""
    install(session, "ruff>=0.17,<0.18", "import-linter>=2.16,<3")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("lint-imports", env={"PYTHONPATH": str(ROOT)})


@nox.session(python=interpreter(TODAY[0]))
def docs(session: nox.Session) -> None:
    """Build the documentation's site in build/site; a warning, such as a dead link, is an error."""
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    # The tools alone: they read the sources without importing them.
    install(session, *metadata["options.extras_require"]["docs"].split())
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


def environment(name: str, version: str, torch: list[str]) -> None:
    """Define the sessions of one environment; its types and tests share what is installed."""
    programs = ROOT / ".nox" / f"environment-{name}" / "bin"

    @nox.session(python=interpreter(version), name=f"environment-{name}")
    def installed(session: nox.Session) -> None:
        install(session, *torch, "--editable", ".[report,test]")

    @nox.session(venv_backend="none", requires=[f"environment-{name}"], name=f"types-{name}")
    def types(session: nox.Session) -> None:
        session.run(str(programs / "mypy"), external=True)

    @nox.session(venv_backend="none", requires=[f"environment-{name}"], name=f"tests-{name}")
    def tests(session: nox.Session) -> None:
        # A worker for each core: the processes that tests start get one thread each, too.
        arguments = session.posargs or ["--numprocesses", "auto"]
        pytest = str(programs / "pytest")
        session.run(pytest, *arguments, env={"OMP_NUM_THREADS": "1"}, external=True)

    which = f"(Python {version}, {', '.join(torch)})"
    installed.__doc__ = f"Install what types and tests need. {which}"
    types.__doc__ = f"Check types. {which}"
    tests.__doc__ = f"Run the tests. {which}"


environment("ipu", *IPU)
environment("today", *TODAY)


@nox.session(python=interpreter(TODAY[0]))
def format(session: nox.Session) -> None:
    """Format, and mend what ruff can mend."""
    install(session, "ruff>=0.17,<0.18")
    session.run("ruff", "check", "--fix", ".")
    session.run("ruff", "format", ".")
