"""Tries our programs on IPUs, stage by stage, stops at the first failure, and leaves a report.

    python tests/hardware/run.py [--only STAGE | --from STAGE] [--report FILE] [--work FOLDER]

Each stage runs in a process of its own. On a machine without the SDK all of it runs on the
simulator, and the report says so: it then shows that the stages work, and nothing of IPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from stages import STAGES, NotHere, Stage, Work, write_reference  # noqa: E402

PASSED, FAILED, NOT_HERE = "passed", "failed", "not here"
#: Exit status of a stage's process that cannot be tried here; 2 is argparse's.
NOT_HERE_STATUS = 3


class Outcome(NamedTuple):
    """What became of a stage."""

    stage: Stage
    result: str
    seconds: float
    said: str


def machine() -> List[str]:
    """Return what the stages run on, a line each."""
    from ipu_proxynorm.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(["doctor"])
    return [*said.getvalue().strip().splitlines(), f"system: {platform.platform()}"]


def simulated() -> bool:
    """Tell whether nothing here is an IPU's or the SDK's."""
    from ipu_proxynorm.backend import SIMULATED

    return SIMULATED


@contextlib.contextmanager
def environment(changes: Dict[str, str]) -> Iterator[None]:
    """Set environment variables meanwhile."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tried_here(stage: Stage, folder: Path) -> Outcome:
    """Try a stage in this process."""
    lines: List[str] = []

    def say(text: str) -> None:
        lines.append(text)
        print(f"  {text}", file=sys.__stdout__, flush=True)

    start, result = time.perf_counter(), PASSED
    try:
        with environment(stage.environment):
            stage.run(Work(folder, say))
    except NotHere as reason:
        result = NOT_HERE
        say(str(reason))
    except AssertionError as error:
        result = FAILED
        say(str(error))
    except Exception:
        result = FAILED
        say(traceback.format_exc())
    return Outcome(stage, result, time.perf_counter() - start, "\n".join(lines))


def tried(stage: Stage, folder: Path) -> Outcome:
    """Try a stage in a process of its own, which may end by itself."""
    command = [sys.executable, str(Path(__file__)), "--inside", stage.name, "--work", str(folder)]
    start, lines = time.perf_counter(), []
    process: Any = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **stage.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        lines.append(line.rstrip())
        print(line, end="", flush=True)
    status = process.wait()
    result = {0: PASSED, NOT_HERE_STATUS: NOT_HERE}.get(status, FAILED)
    if status < 0:
        lines.append(f"ended by signal {-status}")
    return Outcome(stage, result, time.perf_counter() - start, "\n".join(lines))


def report(on: List[str], outcomes: List[Outcome], is_simulated: bool) -> str:
    """Return the report, Markdown."""
    lines = ["# ipu-proxynorm: first hour on an IPU", ""]
    if is_simulated:
        lines += ["**Ran on the simulator: this shows that the stages work, nothing of IPUs.**", ""]
    lines += [f"- {line}" for line in on]
    left = len(STAGES) - len(outcomes)
    lines += ["", "| stage | result | s | proves |", "|---|---|---|---|"]
    lines += [
        f"| {o.stage.name} | {o.result} | {o.seconds:.0f} | {o.stage.proves} |" for o in outcomes
    ]
    if outcomes and outcomes[-1].result == FAILED:
        lines += ["", f"Stopped; look at: {outcomes[-1].stage.look_at}."]
    if left:
        lines += ["", f"{left} of {len(STAGES)} stages were not tried."]
    for outcome in outcomes:
        lines += ["", f"## {outcome.stage.name}: {outcome.result}", "", "```", outcome.said, "```"]
    return "\n".join(lines) + "\n"


def chosen(only: Optional[str], first: Optional[str]) -> List[Stage]:
    """Return the stages that are asked for."""
    names = [stage.name for stage in STAGES]
    if only is not None:
        return [STAGES[names.index(only)]]
    return STAGES[names.index(first) if first is not None else 0 :]


def run(
    stages: List[Stage], folder: Path, path: Path, attempt: Callable[[Stage, Path], Outcome]
) -> int:
    """Try stages until one fails, writing the report after each; return the exit status."""
    outcomes: List[Outcome] = []
    on, is_simulated = machine(), simulated()
    for stage in stages:
        print(f"{stage.name}: proves that {stage.proves}", flush=True)
        outcomes.append(attempt(stage, folder))
        path.write_text(report(on, outcomes, is_simulated), encoding="utf-8")
        print(f"{stage.name}: {outcomes[-1].result}", flush=True)
        if outcomes[-1].result == FAILED:
            print(f"look at: {stage.look_at}")
            break
    where = " (on the simulator: nothing of IPUs is shown)" if is_simulated else ""
    passed = sum(outcome.result == PASSED for outcome in outcomes)
    print(f"{passed} of {len(stages)} stages passed{where}; report: {path}")
    return 1 if outcomes[-1].result == FAILED else 0


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the stages, or one of them inside its process."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [stage.name for stage in STAGES]
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--only", choices=names, help="this stage alone")
    which.add_argument("--from", dest="first", choices=names, help="this stage and those after it")
    which.add_argument("--inside", choices=names, help=argparse.SUPPRESS)
    which.add_argument("--reference", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, default=Path("ipu-report.md"), help="file to send")
    parser.add_argument("--work", type=Path, help="folder for runs; default: one that is removed")
    given = parser.parse_args(arguments)
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.work or Path(temporary)).resolve()
        if given.reference is not None:
            write_reference(given.reference, Work(folder))
            return 0
        if given.inside is not None:
            outcome = tried_here(chosen(given.inside, None)[0], folder)
            return {PASSED: 0, NOT_HERE: NOT_HERE_STATUS}.get(outcome.result, 1)
        return run(chosen(given.only, given.first), folder, given.report.resolve(), tried)


if __name__ == "__main__":
    sys.exit(main())
