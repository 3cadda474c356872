"""Try random command lines and damaged files: each must end in a sentence, never in a traceback.

    python benchmarks/faults/random_command_lines.py [--count 1000] [--seed 0]

A line is drawn from the commands, their options and overrides, with values that are right, odd or
nonsense; its CONFIG is a shipped one, a damaged copy of one or no file at all; its run folder is
that of a small run, whole or with a damaged record. Lines that would train do so as ``--smoke``.
Prints how many lines ended with which status, and every traceback; the exit status is 1 where there
is one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, Counter, Iterator, List

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ipu_proxynorm.cli import main
from ipu_proxynorm.config import documentation

CONFIG = Path("configs/quickstart.yaml").resolve()
#: Small enough for seconds.
SMALL = ["model.width=4", "training.epochs=1", "ipu.splits=[]", "ipu.micro_batch_size=32"]
VALUES = [
    "0", "1", "-1", "2", "1e9", "1e-400", "nan", "inf", "null", "true", "yes", "''", "[]", "[1,2]",
    "{}", "{a: 1}", "${name}", "${nothing}", "${oc.env:NOBODY}", "a b", "ü", "\x1b[31m", "../..",
    "gn4+pn", "ln", "bn+pn", "digits", "/none", "~", "007", "1_000", "0x10", "1:30", "9" * 400,
    "x" * 300, "%s", "{0}", "\\", '"', "#", "=", "a=b",
]  # fmt: skip
OPTIONS = {
    "train": ["--smoke", "--resume", "--overwrite", "--keys", "--checkpoint", "--nothing"],
    "validate": ["--checkpoint"],
    "export": ["--which", "--as", "--overwrite", "--weights"],
    "memory": ["--norms", "--micro-batch", "--format", "--output", "--measured"],
    "plan": ["--ipus", "--system", "--global-batch", "--output"],
    "preflight": [],
    "runs": [],
    "analyse": ["--norms", "--images", "--epochs", "--format"],
    "benchmark": ["--calls", "--device-data"],
    "doctor": [],
    "": ["--help", "--traceback"],
    "nothing": [],
}
#: Options that take no value.
SWITCHES = ("--smoke", "--resume", "--overwrite", "--keys", "--measured", "--epochs", "--help")
SECONDS = 120


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Return a copy of a file's content with some bytes or lines changed, or its end missing."""
    lines = content.splitlines(keepends=True)
    kind = chance.randrange(5)
    if kind == 0 and lines:
        del lines[chance.randrange(len(lines))]
        return b"".join(lines)
    if kind == 1:
        return content[: chance.randrange(len(content) + 1)]
    if kind == 2 and lines:
        at = chance.randrange(len(lines))
        name = lines[at].partition(b":")[0]
        lines[at] = name + b": " + chance.choice(VALUES).encode() + b"\n"
        return b"".join(lines)
    changed = bytearray(content)
    for _ in range(chance.randrange(1, 4)):
        changed[chance.randrange(len(changed))] = chance.randrange(256)
    return bytes(changed)


class Lines:
    """Draws command lines.

    Args:
        folder: where damaged files are written.
        run: the folder of a small run.
        chance: draws.
    """

    def __init__(self, folder: Path, run: Path, chance: random.Random) -> None:
        self.folder, self.run, self.chance = folder, run, chance
        self.keys = [key.name for key in documentation()]

    def subject(self, command: str) -> str:
        """Return CONFIG or RUN_DIR: right, damaged or none."""
        chance = self.chance
        if command in ("validate", "export") or (command == "analyse" and chance.random() < 0.5):
            return str(self.damaged_run() if chance.random() < 0.5 else self.run)
        if command == "runs":
            return str(chance.choice([self.run.parent, self.damaged_run().parent, "/none"]))
        if chance.random() < 0.4:
            path = self.folder / "config.yaml"
            path.write_bytes(damaged(CONFIG.read_bytes(), chance))
            return str(path)
        return chance.choice([str(CONFIG)] * 6 + ["/none", "", ".", "/dev/null", "quickstart"])

    def damaged_run(self) -> Path:
        """Return a copy of the run with one damaged file."""
        copy = self.folder / "runs" / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.run, copy)
        files = sorted(path for path in copy.iterdir() if path.is_file())
        path = self.chance.choice(files)
        path.write_bytes(damaged(path.read_bytes(), self.chance))
        return copy

    def draw(self) -> List[str]:
        """Return a command line."""
        chance = self.chance
        command = chance.choice(list(OPTIONS))
        words = [command] if command else []
        if command not in ("", "doctor", "nothing"):
            words.append(self.subject(command))
        if command == "export":
            out = [str(self.folder / "weights.pt"), "/none/weights.pt", "weights.txt"]
            words.append(chance.choice(out))
        for option in chance.sample(OPTIONS[command], chance.randrange(len(OPTIONS[command]) + 1)):
            words.append(option)
            if option not in SWITCHES and chance.random() < 0.9:
                words.append(chance.choice(VALUES))
        if command in ("train", "memory", "plan", "preflight", "benchmark", "analyse"):
            words += [*SMALL, f"runs={self.folder / 'new'}"]
            for _ in range(chance.randrange(4)):
                words.append(f"{chance.choice(self.keys)}={chance.choice(VALUES)}")
            if chance.random() < 0.1:
                words.append(chance.choice(VALUES))
        if command == "train" and "--smoke" not in words:
            words.append("--smoke")
        return words


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise TimeoutError after so many seconds."""

    def late(number: int, frame: Any) -> None:
        raise TimeoutError

    former = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


@contextlib.contextmanager
def quiet(nowhere: io.StringIO) -> Iterator[None]:
    """Print into ``nowhere``."""
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def outcome(words: List[str]) -> str:
    """Run a command line in this process; return its status, or the traceback it ends in."""
    nowhere = io.StringIO()
    try:
        with limited(SECONDS), quiet(nowhere):
            return f"status {main(words)}"
    except SystemExit as error:  # argparse's
        return f"status {error.code}"
    except TimeoutError:
        return f"longer than {SECONDS} s"
    except BaseException:
        return traceback.format_exc()


def run() -> int:
    """Draw, run, count, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts: Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # an option's odd value may be a folder that is written
        small = ["train", str(CONFIG), *SMALL, f"runs={folder / 'whole'}"]
        if outcome(small) != "status 0":
            raise SystemExit(f"the run itself fails: {outcome(small)}")
        lines = Lines(folder, folder / "whole" / "quickstart", random.Random(arguments.seed))
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        for number in range(arguments.count):
            words = lines.draw()
            found = outcome(words)
            if not found.startswith(("status", "longer")):
                print(f"line {number}: {words}\n{found}", flush=True)
                found = "traceback"
            counts[found] += 1
    print(", ".join(f"{count} {found}" for found, count in sorted(counts.items())))
    return 1 if counts["traceback"] else 0


if __name__ == "__main__":
    sys.exit(run())
