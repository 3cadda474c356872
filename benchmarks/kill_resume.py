"""Kill a training run with SIGKILL at random instants, resume it each time, compare the weights.

    python benchmarks/kill_resume.py [--kills 20] [--seed 0] [--apart] [CONFIG] [key=value ...]

A run that nobody disturbs comes first. The same run is then started, killed and resumed ``--kills``
times, at an instant drawn at random while it starts or makes its next few host calls; every third
kill waits for a checkpoint to be half written. In the end all weights, optimiser tensors and random
streams of the two runs must be equal, bit for bit; the exit status says so.

By default both a float32 run whose micro-batches are computed together and a float16 one, whose are
computed one after the other, are killed; ``--apart`` computes those of the former so, too.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ipu_proxynorm.cli import main
from ipu_proxynorm.files.checkpoint import Checkpoint, load_checkpoint
from ipu_proxynorm.training.exactness import TOGETHER

CONFIG = "configs/quickstart.yaml"
COMMON = [
    # 11 host calls an epoch.
    "training.epochs=6",
    "training.checkpoint_every=2",
    "training.mixup_alpha=0.2",
    "data.augment=crop",
    "model.width=4",
    "ipu.splits=[]",
]
OVERRIDES = {
    # Stochastic rounding draws on every replica's stream.
    "16.16": [
        *COMMON,
        "ipu.micro_batch_size=64",
        "ipu.gradient_accumulation=1",
        "ipu.precision=16.16",
        "ipu.stochastic_rounding=true",
        "optimizer.loss_scaling=128",
    ],
    "32.32": [*COMMON, "ipu.micro_batch_size=8", "ipu.gradient_accumulation=8"],
}


def train(arguments: List[str]) -> None:
    """Run the command in this process, silently."""
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        status = main(["train", *arguments])
    os._exit(status)


def start(arguments: List[str]) -> Any:
    """Run the command in a process of its own, spared the imports."""
    process = multiprocessing.get_context("fork").Process(target=train, args=(arguments,))
    process.start()
    return process


def lines(folder: Path) -> int:
    """Return how many lines of metrics a run has written: one a host call, one a validation."""
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def half_written(folder: Path) -> Set[Tuple[str, int]]:
    """Return the checkpoints under way, or left when a process was killed, and when written to."""
    found = set()
    for path in folder.glob(".*.pt.part"):
        with contextlib.suppress(FileNotFoundError):  # whole by now
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def kill(
    process: Any, folder: Path, left: Set[Tuple[str, int]], calls: Optional[int], delay: float
) -> str:
    """Kill ``process``, a run just started or resumed, and say where it was.

    Args:
        process: the run.
        folder: its own.
        left: what of half written checkpoints was there before.
        calls: how many host calls it is to log first; None: until a checkpoint is half written.
        delay: how long to wait then, s.
    """
    before, reached = lines(folder), None
    while process.is_alive():
        if calls is None:
            if half_written(folder) - left:
                break
            continue
        # What was logged after the checkpoint is cut off when the run goes on.
        before = min(before, lines(folder))
        if reached is None and lines(folder) >= before + calls:
            reached = time.monotonic()
        if reached is not None and time.monotonic() - reached >= delay:
            break
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return "too late: the run had ended"
    if half_written(folder) - left:
        return "while a checkpoint was written"
    return "before the first host call" if calls == 0 else "between checkpoints"


def position(folder: Path) -> str:
    """Return where a run would go on."""
    path = folder / "last.pt"
    if not path.exists():
        return "the beginning"
    state = load_checkpoint(path).state
    return str(state.progress) if state else "?"


def differing(one: Checkpoint, other: Checkpoint) -> List[str]:
    """Return the names of tensors that are not equal bit for bit."""

    def tensors(checkpoint: Checkpoint) -> Any:
        assert checkpoint.state is not None
        yield from checkpoint.weights.items()
        yield from checkpoint.state.optimizer["ipu_state"].items()
        yield "streams", checkpoint.state.streams

    ours, theirs = dict(tensors(one)), dict(tensors(other))
    return [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    ]


def killed_and_resumed(common: List[str], kills: int, chance: random.Random, runs: str) -> int:
    """Compare a run that is killed again and again with one that is not.

    Args:
        common: the command line of both.
        kills: how many.
        chance: draws the instants.
        runs: folder of both runs.

    Returns:
        The exit status.
    """
    common = [*common, f"runs={runs}"]
    began = time.monotonic()
    whole = start([*common, "name=whole"])
    whole.join()
    duration = time.monotonic() - began
    if whole.exitcode:
        print(f"the run itself ends with status {whole.exitcode}", file=sys.stderr)
        return 2
    print(f"undisturbed run: {duration:.1f} s; kills: {kills}", flush=True)
    folder = Path(runs, "killed")
    counts: Dict[str, int] = {}
    killed = 0
    while killed < kills:
        calls = None if killed % 3 == 2 else chance.randrange(4)
        left = half_written(folder)
        process = start([*common, "name=killed", "--resume"])
        where = kill(process, folder, left, calls, chance.uniform(0, duration / 20))
        if where.startswith("too late"):
            # Only a run with work left can be killed: this one begins again.
            for path in folder.glob("*.pt"):
                path.unlink()
            print(f"{where}; it begins again", flush=True)
            continue
        killed += 1
        counts[where] = counts.get(where, 0) + 1
        print(f"kill {killed:2}: {where}; goes on from {position(folder)}", flush=True)
    last = start([*common, "name=killed", "--resume"])
    last.join()
    if last.exitcode:
        print(f"the last resumption ends with status {last.exitcode}", file=sys.stderr)
        return 1
    one, other = (load_checkpoint(Path(runs, name, "last.pt")) for name in ("whole", "killed"))
    different = differing(one, other)
    print(", ".join(f"{count} {where}" for where, count in sorted(counts.items())))
    assert other.state is not None
    print(
        f"{len(one.weights)} weight tensors and optimiser state, "
        f"{other.state.ways.get(TOGETHER, 'unknown')} micro-batch(es) computed at once: "
        + (f"{len(different)} differ: {different[:5]}" if different else "equal, bit for bit")
    )
    return 1 if different else 0


def run() -> int:
    """Parse, kill, resume, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", nargs="?", default=CONFIG)
    parser.add_argument("overrides", nargs="*", help="key=value; default: small digits runs")
    parser.add_argument("--kills", type=int, default=20, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--apart", action="store_true", help="one micro-batch after the other")
    arguments = parser.parse_args()
    if arguments.apart:
        os.environ["POPTORCH_SIM_TOGETHER"] = "0"
    given = {"": arguments.overrides} if arguments.overrides else OVERRIDES
    status = 0
    for name, overrides in given.items():
        print(name, flush=True)
        chance = random.Random(arguments.seed)
        with tempfile.TemporaryDirectory() as runs:
            common = [arguments.config, *overrides]
            status = max(status, killed_and_resumed(common, arguments.kills, chance, runs))
    return status


if __name__ == "__main__":
    sys.exit(run())
