"""Kill a training run with SIGKILL at random instants, resume it each time, compare the weights.

    python benchmarks/faults/kill_resume.py [--kills 20] [--processes 1 2 4] [--seed 0] [--apart]
        [--precisions 16.16 32.32] [CONFIG] [key=value ...]

A run that nobody disturbs comes first. The same run is then started, killed and resumed ``--kills``
times, at an instant drawn at random while it starts or makes its next few host calls; every third
kill waits for a checkpoint to be half written. Of several processes one, drawn at random, is
killed, and the others must end by themselves. Each resumption must succeed at the first try and at
once, though data workers of the killed process may still be there. In the end all weights,
averages, optimiser tensors, random streams, the progress, the metrics (speeds aside) and
TensorBoard's steps of the two runs must be equal, bit for bit; the exit status says so.

By default two runs are killed, both with data workers, two device iterations, mix-up, augmentation
and an average of the weights: a small EfficientNet in 16.16 with stochastic rounding, dropout and
stochastic depth, whose micro-batches are computed one after the other, and a small ResNet in 32.32,
whose are computed together; ``--apart`` computes those of the latter so, too.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Set, Tuple

import numpy as np

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as ipu_proxynorm.__main__ does

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ipu_proxynorm.cli import main
from ipu_proxynorm.files.checkpoint import Checkpoint, load_checkpoint
from ipu_proxynorm.models.efficientnet import EfficientNet
from ipu_proxynorm.models.factory import MODELS, Architecture
from ipu_proxynorm.training.exactness import TOGETHER

CONFIG = "configs/quickstart.yaml"
#: Seconds in which the other processes must end when one is killed: at the start they wait for 120.
PATIENCE = 180
COMMON = [
    "training.epochs=6",
    "training.checkpoint_every=2",
    "training.mixup_alpha=0.2",
    "data.augment=crop",
    "ipu.splits=[]",
    "ipu.device_iterations=2",
    "data.workers=2",
    "training.average=exponential",
]
#: 5 host calls of 2 weight updates an epoch.
OVERRIDES = {
    # Stochastic rounding draws on every replica's stream, as dropout and stochastic depth do.
    "16.16": [
        *COMMON,
        "model.name=efficientnet_tiny",
        "data.name=image_folder",
        "data.image_size=32",
        "ipu.replication_factor=4",
        "ipu.micro_batch_size=4",
        "ipu.gradient_accumulation=1",
        "ipu.inference_device_iterations=1",
        "ipu.precision=16.16",
        "ipu.stochastic_rounding=true",
        "optimizer.loss_scaling=128",
    ],
    "32.32": [
        *COMMON,
        "model.width=4",
        "ipu.micro_batch_size=8",
        "ipu.gradient_accumulation=8",
    ],
}
IMAGES = {"train": 160, "val": 32}
# One block a stage, 8 channels and more: compiled in a second.
TINY = {"width": 0.1, "depth": 0.1, "dropout": 0.2, "drop_path": 0.2}


def write_images(folder: Path) -> None:
    """Write a data set of noise."""
    generator = np.random.default_rng(0)
    for part, count in IMAGES.items():
        for number in range(count):
            label = folder / part / f"class{number % 4}"
            label.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(label / f"{number}.png")


def train(arguments: List[str], environment: Dict[str, str]) -> None:
    """Run the command in this process, silently."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        status = main(["train", *arguments])
    os._exit(status)


class Started:
    """The command in processes of its own, spared the imports, as torchrun starts them.

    Args:
        arguments: the command line.
        count: how many processes.
    """

    def __init__(self, arguments: List[str], count: int) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.processes = [
            multiprocessing.get_context("fork").Process(
                target=train, args=(arguments, {**shared, "RANK": str(rank)} if count > 1 else {})
            )
            for rank in range(count)
        ]
        for process in self.processes:
            process.start()

    def is_alive(self) -> bool:
        """Return whether none of the processes has ended."""
        return all(process.is_alive() for process in self.processes)

    def kill(self, chance: random.Random) -> bool:
        """Kill one process; return whether it was still there."""
        victim = chance.choice(self.processes)
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim.pid or 0, signal.SIGKILL)
        self.end(PATIENCE)
        return victim.exitcode == -signal.SIGKILL

    def end(self, patience: Optional[float] = None) -> int:
        """Wait until all have ended, or so many seconds; return the largest exit status."""
        for process in self.processes:
            process.join(patience)
            if process.is_alive():
                process.kill()
                raise SystemExit(f"a process outlives the others by more than {patience} s")
        return max(process.exitcode or 0 for process in self.processes)


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
    started: Started,
    folder: Path,
    left: Set[Tuple[str, int]],
    calls: Optional[int],
    delay: float,
    chance: random.Random,
) -> str:
    """Kill a run just started or resumed, and say where it was.

    Args:
        started: the run.
        folder: its own.
        left: what of half written checkpoints was there before.
        calls: how many host calls it is to log first; None: until a checkpoint is half written.
        delay: how long to wait then, s.
        chance: draws the process that is killed.
    """
    before, reached = lines(folder), None
    while started.is_alive():
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
    ended = not started.is_alive()
    killed = started.kill(chance)
    if ended and started.end() != 0:
        return f"refused: the run ended by itself with status {started.end()}"
    if ended or not killed:
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


def tensors_in(name: str, values: Any) -> Iterator[Tuple[str, torch.Tensor]]:
    """Yield the tensors of nested dictionaries, by their names."""
    if isinstance(values, torch.Tensor):
        yield name, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from tensors_in(f"{name}.{key}", value)


def differing(one: Checkpoint, other: Checkpoint) -> List[str]:
    """Return the names of tensors that are not equal bit for bit."""

    def tensors(checkpoint: Checkpoint) -> Any:
        assert checkpoint.state is not None
        yield from checkpoint.weights.items()
        yield from checkpoint.state.optimizer["ipu_state"].items()
        yield "streams", checkpoint.state.streams
        yield from tensors_in("", checkpoint.state.extra)

    ours, theirs = dict(tensors(one)), dict(tensors(other))
    return [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])
    ]


def records(folder: Path) -> Dict[str, Any]:
    """Return what a run has recorded, speeds aside, by name."""
    checkpoint = load_checkpoint(folder / "last.pt")
    assert checkpoint.state is not None
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {
        "progress": checkpoint.state.progress,
        "metrics": [{**line, "images_per_second": 0} for line in metrics],
        "TensorBoard": {
            name: [(event.step, event.value) for event in events.Scalars(name)]
            for name in events.Tags()["scalars"]
            if not name.endswith("images_per_second")
        },
    }


def killed_and_resumed(
    common: List[str], kills: int, chance: random.Random, runs: str, count: int
) -> int:
    """Compare a run that is killed again and again with one that is not.

    Args:
        common: the command line of both.
        kills: how many.
        chance: draws the instants.
        runs: folder of both runs.
        count: the number of processes of each.

    Returns:
        The exit status.
    """
    common = [*common, f"runs={runs}"]
    began = time.monotonic()
    status = Started([*common, "name=whole"], count).end()
    duration = time.monotonic() - began
    if status:
        print(f"the run itself ends with status {status}", file=sys.stderr)
        return 2
    print(f"undisturbed run: {duration:.1f} s; kills: {kills}", flush=True)
    folder = Path(runs, "killed")
    counts: Dict[str, int] = {}
    killed = 0
    while killed < kills:
        calls = None if killed % 3 == 2 else chance.randrange(4)
        left = half_written(folder)
        started = Started([*common, "name=killed", "--resume"], count)
        where = kill(started, folder, left, calls, chance.uniform(0, duration / 20), chance)
        if where.startswith("refused"):
            print(where, file=sys.stderr)
            return 1
        if where.startswith("too late"):
            # Only a run with work left can be killed: this one begins again.
            for path in folder.glob("*.pt"):
                path.unlink()
            print(f"{where}; it begins again", flush=True)
            continue
        killed += 1
        counts[where] = counts.get(where, 0) + 1
        print(f"kill {killed:2}: {where}; goes on from {position(folder)}", flush=True)
    status = Started([*common, "name=killed", "--resume"], count).end()
    if status:
        print(f"the last resumption ends with status {status}", file=sys.stderr)
        return 1
    one, other = (load_checkpoint(Path(runs, name, "last.pt")) for name in ("whole", "killed"))
    different = differing(one, other)
    ours, theirs = (records(Path(runs, name)) for name in ("whole", "killed"))
    different += [name for name in ours if ours[name] != theirs[name]]
    print(", ".join(f"{count} {where}" for where, count in sorted(counts.items())))
    assert other.state is not None
    print(
        f"{len(one.weights)} weight tensors, averages, optimiser state, metrics and progress, "
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
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[1], help="of each run, as under torchrun"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--apart", action="store_true", help="one micro-batch after the other")
    parser.add_argument("--precisions", nargs="+", default=list(OVERRIDES), choices=OVERRIDES)
    arguments = parser.parse_args()
    if arguments.apart:
        os.environ["POPTORCH_SIM_TOGETHER"] = "0"
    given = {name: OVERRIDES[name] for name in arguments.precisions}
    if arguments.overrides:
        given = {"": arguments.overrides}
    MODELS["efficientnet_tiny"] = Architecture(EfficientNet, TINY, 32, 32, ())
    gc.freeze()  # no child looks through, and so copies, what it has from here
    status = 0
    for name, overrides in given.items():
        for count in arguments.processes:
            print(f"{name}, processes: {count}", flush=True)
            chance = random.Random(arguments.seed)
            with tempfile.TemporaryDirectory() as folder:
                common = [arguments.config, *overrides]
                if "data.name=image_folder" in overrides and not arguments.overrides:
                    write_images(Path(folder, "images"))
                    common.append(f"data.path={folder}/images")
                elif count > 2:
                    common.append(f"ipu.replication_factor={count}")
                kills = arguments.kills
                status = max(status, killed_and_resumed(common, kills, chance, folder, count))
    return status


if __name__ == "__main__":
    sys.exit(run())
