"""Try random command lines and damaged files: each must end in a sentence, never in a traceback.

    python benchmarks/faults/random_command_lines.py [--count 1000] [--records 100] [--seed 0]
        [--seconds 120]

A line is drawn from the commands and options that the program's own parser has, and from the keys,
with values that are right, odd or nonsense; its CONFIG is a shipped one, a damaged copy of one or
no file at all; its run folder is that of a small run, whole or with a damaged record. Lines that
would train do so as ``--smoke``. With ``--records``, as many times a file of the run (checkpoint,
metrics, power, state) is damaged, and every command that reads it is tried: ``runs``, ``train
--resume``, ``validate``, ``export``, ``predict``, ``analyse --epochs``; and one of a comparison
(its rows, or a file of its run), which ``compare`` reads. Prints how many lines ended with which
status, and every traceback; the exit status is 1 where there is one.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import itertools
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, Counter, Dict, Iterator, List

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ipu_proxynorm.cli import main
from ipu_proxynorm.cli.main import create_parser
from ipu_proxynorm.config import documentation

CONFIG = Path("configs/quickstart.yaml").resolve()
#: Small enough for seconds.
SMALL = ["model.width=4", "training.epochs=1", "ipu.splits=[]", "ipu.micro_batch_size=32"]
RECORDED = ["training.analyse_every=1"]
RECORDS = ("last.pt", "best.pt", "metrics.jsonl", "power.jsonl", "state.json", "config.yaml")
VALUES = [
    "0", "1", "-1", "2", "1e9", "1e-400", "nan", "inf", "null", "true", "yes", "''", "[]", "[1,2]",
    "{}", "{a: 1}", "${name}", "${nothing}", "${oc.env:NOBODY}", "a b", "ü", "\x1b[31m", "../..",
    "gn4+pn", "ln", "bn+pn", "digits", "/none", "~", "007", "1_000", "0x10", "1:30", "9" * 400,
    "x" * 300, "%s", "{0}", "\\", '"', "#", "=", "a=b",
]  # fmt: skip


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


def commands() -> Dict[str, argparse.ArgumentParser]:
    """Return the program's commands, each with its parser."""
    for action in create_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("the program has no commands")


class Lines:
    """Draws command lines.

    Args:
        folder: where damaged files are written.
        run: the folder of a small run.
        compared: the folder of a comparison of one run.
        chance: draws.
    """

    def __init__(self, folder: Path, run: Path, compared: Path, chance: random.Random) -> None:
        self.folder, self.run, self.compared, self.chance = folder, run, compared, chance
        self.keys = [key.name for key in documentation()]
        self.commands = commands()

    def positional(self, place: str) -> List[str]:
        """Return what a command line has where its usage says ``place``."""
        chance = self.chance
        if place.startswith("key=value"):
            drawn = [
                f"{chance.choice(self.keys)}={chance.choice(VALUES)}"
                for _ in range(chance.randrange(4))
            ]
            return [*SMALL, f"runs={self.folder / 'new'}", *drawn]
        if place == "OUT":
            out = [str(self.folder / "weights.pt"), "/none/weights.pt", "weights.txt", "w.onnx"]
            return [chance.choice(out)]
        if place == "IMAGE":
            return chance.choices([str(self.image()), "/none", ".", str(CONFIG)], k=2)
        if "RUN" in place and ("CONFIG" not in place or chance.random() < 0.5):
            return [str(self.damaged_run() if chance.random() < 0.5 else self.run)]
        if place == "DIR":
            return [str(chance.choice([self.run.parent, self.damaged_run().parent, "/none"]))]
        if chance.random() < 0.4:
            path = self.folder / "config.yaml"
            path.write_bytes(damaged(CONFIG.read_bytes(), chance))
            return [str(path)]
        return [chance.choice([str(CONFIG)] * 6 + ["/none", "", ".", "/dev/null", "quickstart"])]

    def image(self) -> Path:
        """Return an image, whole or damaged."""
        path = self.folder / "image.png"
        Image.new("RGB", (8, 8)).save(path)
        if self.chance.random() < 0.5:
            path.write_bytes(damaged(path.read_bytes(), self.chance))
        return path

    def damaged_run(self, name: str = "") -> Path:
        """Return a copy of the run with one damaged file, that of a name or any."""
        copy = self.folder / "runs" / "damaged"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.run, copy)
        files = sorted(path for path in copy.iterdir() if path.is_file())
        path = copy / name if name else self.chance.choice(files)
        path.write_bytes(damaged(path.read_bytes(), self.chance))
        return copy

    def draw(self) -> List[str]:
        """Return a command line."""
        chance = self.chance
        command = chance.choice([*self.commands, "", "nothing"])
        if command not in self.commands:
            return [command, *chance.sample(["--help", "--traceback"], 1)][not command :]
        words = [command]
        options = []
        for action in self.commands[command]._actions:
            if action.option_strings:
                options.append(action)
            elif action.nargs not in ("?", "*") or chance.random() < 0.9:
                words += self.positional(str(action.metavar or action.dest))
        for action in chance.sample(options, chance.randrange(min(len(options), 4) + 1)):
            words.append(chance.choice(action.option_strings))
            if action.nargs != 0 and chance.random() < 0.9:
                choices = [str(choice) for choice in action.choices or ()]
                words.append(chance.choice(choices or [*VALUES, str(action.default)]))
        if chance.random() < 0.05:
            words.append(chance.choice(VALUES))
        if command == "train" and "--smoke" not in words:
            words.append("--smoke")
        return words

    def reading(self) -> Iterator[List[str]]:
        """Damage a record of a run, and yield what reads it."""
        copy = self.damaged_run(self.chance.choice(RECORDS))
        common = [str(CONFIG), *SMALL, *RECORDED, f"runs={copy.parent}", "name=damaged"]
        yield ["runs", str(copy.parent)]
        yield ["validate", str(copy)]
        yield ["export", str(copy), str(self.folder / "weights.pt"), "--overwrite"]
        yield ["predict", str(copy), str(self.image())]
        yield ["analyse", str(copy), "--epochs", "--format", "csv", "--out", str(self.folder / "a")]
        yield ["train", *common, "training.epochs=2", "--resume"]

    def comparing(self) -> Iterator[List[str]]:
        """Damage the rows of a comparison, or a record of a run of its, and yield what goes on."""
        copy = self.folder / "compared"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.compared, copy)
        (run,) = (copy / "runs").iterdir()
        files = [path for path in (run / name for name in RECORDS) if path.exists()]
        path = self.chance.choice([copy / "rows.jsonl", *files])
        path.write_bytes(damaged(path.read_bytes(), self.chance))
        words = self.comparison(copy)
        yield [*words, "--done"]
        if path.name != "rows.jsonl":  # the row is made again, of what is left of the run
            (copy / "rows.jsonl").unlink()
        yield words

    @staticmethod
    def comparison(out: Path) -> List[str]:
        """Return the command line of a comparison of one run."""
        asked = ["--norms", "gn4", "--format", "csv", "--out", str(out)]
        return ["compare", str(CONFIG), *SMALL, *RECORDED, *asked]


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


def outcome(words: List[str], seconds: int = 120) -> str:
    """Run a command line in this process; return its status, or the traceback it ends in.

    What it prints must not act on a terminal.
    """
    nowhere = io.StringIO()
    try:
        with limited(seconds), quiet(nowhere):
            status: Any = main(words)
    except SystemExit as error:  # argparse's
        status = error.code
    except TimeoutError:
        return f"longer than {seconds} s"
    except BaseException:
        return traceback.format_exc()
    acting = sorted(set(re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f]", nowhere.getvalue())))
    return f"prints control characters: {acting}" if acting else f"status {status}"


def run() -> int:
    """Draw, run, count, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=120, help="that a line may take")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.chdir(folder)  # an option's odd value may be a folder that is written
        small = ["train", str(CONFIG), *SMALL, *RECORDED, f"runs={folder / 'whole'}"]
        compared = folder / "compared whole"
        for words in (small, Lines.comparison(compared)):
            if (found := outcome(words)) != "status 0":
                raise SystemExit(f"{words[0]} itself fails: {found}")
        chance = random.Random(arguments.seed)
        lines = Lines(folder, folder / "whole" / "quickstart", compared, chance)
        for number in range(arguments.count):
            tried(f"line {number}", lines.draw(), counts, arguments.seconds)
        for number in range(arguments.records):
            for words in itertools.chain(lines.reading(), lines.comparing()):
                tried(f"record {number}", words, counts, arguments.seconds)
    print(", ".join(f"{count} {found}" for found, count in sorted(counts.items())))
    return 1 if counts["traceback"] else 0


def tried(what: str, words: List[str], counts: Counter[str], seconds: int) -> None:
    """Run a command line, count how it ended and print what should not be."""
    found = outcome(words, seconds)
    if not found.startswith("status"):
        print(f"{what}: {words}\n{found}", flush=True)
    counts[found if found.startswith(("status", "longer")) else "traceback"] += 1
    if sum(counts.values()) % 100 == 0:
        print(dict(counts), flush=True)


if __name__ == "__main__":
    sys.exit(run())
