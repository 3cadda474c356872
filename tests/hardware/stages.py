"""What is tried on IPUs, in this order: each stage says what it proves, or fails."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

import operators
import torch
from torch import Tensor, nn

from ipu_proxynorm import backend
from ipu_proxynorm.backend import SIMULATED, poptorch
from ipu_proxynorm.cli import main
from ipu_proxynorm.config import RunConfig, load
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.ipu import training_options
from ipu_proxynorm.models.layers import DropPath
from ipu_proxynorm.prediction.footprint import micro_batch
from ipu_proxynorm.run.directory import RunDirectory
from ipu_proxynorm.run.run import build, create_program, run_data
from ipu_proxynorm.training.loop import fit
from ipu_proxynorm.training.results import StepResult

RECIPE = "configs/quickstart.yaml"
#: 64 images per weight update, however they are split; one epoch of digits is 22 host calls.
ONE_IPU = {
    "micro_batch_size": 16,
    "gradient_accumulation": 4,
    "replication_factor": 1,
    "splits": "[]",
    "precision": "32.32",
}
PIPELINE = {**ONE_IPU, "splits": "[layer2.0]"}
REPLICAS = {**ONE_IPU, "gradient_accumulation": 2, "replication_factor": 2}
#: Host calls whose losses are compared, and by how much they may differ, as a share.
COMPARED = 8
TOLERANCES = {"32.32": 2e-3, "16.32": 3e-2, "16.16": 6e-2}


class NotHere(Exception):
    """A stage cannot be tried on this machine; the next ones can."""


@dataclasses.dataclass(frozen=True)
class Work:
    """Where stages leave what later ones read, and how they say what they find."""

    folder: Path
    say: Callable[[str], None] = print


@dataclasses.dataclass(frozen=True)
class Stage:
    """One thing that is tried.

    Attributes:
        name: of the stage.
        proves: what holds where it passes.
        look_at: what to look at where it fails.
        run: tries it.
        environment: variables that it needs.
    """

    name: str
    proves: str
    look_at: str
    run: Callable[[Work], None]
    environment: Dict[str, str] = dataclasses.field(default_factory=dict)


def require(condition: bool, text: str) -> None:
    """Fail the stage, with this sentence, unless the condition holds."""
    if not condition:
        raise AssertionError(text)


# ---- parts that stages share -------------------------------------------------------------------


def configured(ipu: Dict[str, Any], work: Work, *more: str) -> RunConfig:
    """Return the recipe of one epoch with this layout."""
    changes = [f"ipu.{key}={value}" for key, value in ipu.items()]
    return load(RECIPE, [*changes, "training.epochs=1", f"runs={work.folder / 'runs'}", *more])


def losses(config: RunConfig) -> List[float]:
    """Train for an epoch, and return the loss of each host call."""
    directory = RunDirectory.create(config, overwrite=True)
    try:
        results = list(fit(build(config), directory))
    finally:
        directory.close()
    return [result.loss for result in results if isinstance(result, StepResult)]


def reference(work: Work) -> List[float]:
    """Return the losses of one IPU in 32.32, by the simulator.

    On IPUs it computes them in a process of its own, once.
    """
    path = work.folder / "reference.json"
    if not path.exists():
        command = [sys.executable, str(Path(__file__).with_name("run.py")), "--reference"]
        environment = {**os.environ, backend.VARIABLE: "simulator"}
        environment.pop("POPTORCH_IPU_MODEL", None)
        subprocess.run(
            [*command, str(path), "--work", str(work.folder)], env=environment, check=True
        )
    return json.loads(path.read_text(encoding="utf-8"))


def write_reference(path: Path, work: Work) -> None:
    """Write the losses of one IPU in 32.32, as this process computes them."""
    path.write_text(json.dumps(losses(configured(ONE_IPU, work, "name=reference"))), "utf-8")


def compare_losses(work: Work, name: str, ipu: Dict[str, Any]) -> None:
    """Train with this layout, and hold its losses against the reference's."""
    precision = ipu["precision"]
    ours = losses(configured(ipu, work, f"name={name}"))
    theirs = reference(work)
    first = max(abs(a - b) / abs(b) for a, b in zip(ours[:COMPARED], theirs))
    work.say(f"loss: {ours[0]:.4f} at first, {ours[-1]:.4f} after {len(ours)} host calls")
    work.say(f"largest difference from the reference in {COMPARED} host calls: {first:.1e}")
    require(len(ours) == len(theirs), f"{len(ours)} host calls, expected {len(theirs)}")
    require(ours[-1] < 0.7 * ours[0], "the loss does not fall")
    require(
        first <= TOLERANCES[precision],
        f"losses differ by {first:.1e}, expected at most {TOLERANCES[precision]:g}",
    )


@contextlib.contextmanager
def only_said(work: Work) -> Iterator[None]:
    """Say what commands print."""
    with contextlib.redirect_stdout(_Lines(work.say)):
        yield


class _Lines(io.TextIOBase):
    """A stream that says each line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say, self.rest = say, ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.say(line)
        return len(text)


def command(work: Work, *arguments: str) -> None:
    """Run a command of ours; fail with it."""
    with only_said(work):
        status = main(list(arguments))
    require(status == 0, f"{' '.join(arguments)}: exit status {status}")


# ---- the stages --------------------------------------------------------------------------------


def doctor(work: Work) -> None:
    command(work, "doctor")
    if not SIMULATED:
        require(poptorch.ipuHardwareIsAvailable(), "the SDK sees no IPU")


def each_operator(work: Work) -> None:
    failed = operators.failures(work.say)
    require(not failed, f"{len(failed)} differ or are refused: {'; '.join(failed[:3])}")


def smoke(work: Work) -> None:
    command(work, "train", RECIPE, "--smoke", f"runs={work.folder / 'runs'}")


def offline(work: Work) -> None:
    for precision in ("32.32", "16.32", "16.16"):
        config = configured({**PIPELINE, "precision": precision}, work)
        data = run_data(config.data, config.model.name)
        images = config.ipu.images_per_update
        _, _, program, optimizer = create_program(config, data, images)
        options = training_options(config)
        options.useOfflineIpuTarget()
        times = images // config.ipu.micro_batch_size
        one = micro_batch(config.ipu.micro_batch_size, config.training, data)
        inputs = [torch.zeros((times * t.shape[0], *t.shape[1:]), dtype=t.dtype) for t in one]
        executor = poptorch.trainingModel(program, options, optimizer)
        executor.compile(*inputs)
        require(executor.isCompiled(), f"{precision}: not compiled")
        executor.destroy()
        work.say(f"{precision}: compiled for two IPUs that need not be there")


def one_ipu(work: Work) -> None:
    compare_losses(work, "one-ipu", ONE_IPU)


def half_activations(work: Work) -> None:
    compare_losses(work, "half-activations", {**ONE_IPU, "precision": "16.32"})


def half(work: Work) -> None:
    compare_losses(work, "half", {**ONE_IPU, "precision": "16.16"})


def pipeline(work: Work) -> None:
    compare_losses(work, "pipeline", PIPELINE)


class Sums(nn.Module):
    """A training program that also tells of its weights, on the replica that it runs on.

    Args:
        program: takes images and labels, returns the loss first.
    """

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program

    def forward(self, *inputs: Tensor) -> Sequence[Tensor]:
        """Return the loss, 0-d, and sums of weights and of their squares ``(1, tensors, 2)``."""
        loss, _ = self.program(*inputs)
        weights = [p.detach().float() for p in self.program.parameters()]
        sums = [torch.stack([w.sum(), (w * w).sum()]) for w in weights]
        return loss, torch.stack(sums).unsqueeze(0)


def replicas(work: Work) -> None:
    compare_losses(work, "replicas", REPLICAS)
    config = configured(REPLICAS, work, "name=sums")
    run = build(config)
    options = training_options(config)
    options.outputMode(poptorch.OutputMode.All)
    executor = poptorch.trainingModel(Sums(run.program), options, run.optimizer)
    count = config.ipu.replication_factor
    loader = torch.utils.data.DataLoader(run.data.train, config.ipu.images_per_update)
    calls = 0
    for (images, labels), calls in zip(loader, range(1, 5)):
        _, sums = executor(images, labels)
        # [accumulation step][replica]: the weights before the update.
        sums = sums.reshape(-1, count, *sums.shape[1:])
        apart = int((sums != sums[:, :1]).sum())
        require(apart == 0, f"host call {calls}: {apart} sums of weights differ between replicas")
    executor.destroy()
    require(calls == 4, "no images")
    work.say(f"{sums.shape[2]} tensors on {count} replicas: the same sums in {calls} host calls")


class Drops(nn.Module):
    """Stochastic depth of ones: which images it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.scale = DropPath(0.5), nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """Return what is kept ``(N,)`` and a loss, 0-d."""
        kept = self.drop(images)[:, 0, 0, 0]
        return kept, poptorch.identity_loss((kept * self.scale).mean(), reduction="none")


def random_numbers(work: Work) -> None:
    options = poptorch.Options()
    options.randomSeed(1)
    options.Training.gradientAccumulation(2)
    options.deviceIterations(2)
    options.replicationFactor(2)
    options.outputMode(poptorch.OutputMode.All)
    program = Drops()
    optimizer = poptorch.optim.SGD(program.parameters(), lr=0.0)
    executor = poptorch.trainingModel(program, options, optimizer)
    size = 32
    calls = [executor(torch.ones(8 * size, 1, 1, 1))[0].reshape(8, size) for _ in range(3)]
    executor.destroy()
    drawn = [tuple((row > 0).tolist()) for call in calls for row in call]
    kept = sum(map(sum, drawn)) / (len(drawn) * size)
    work.say(
        f"{len(set(drawn))} different draws of {len(drawn)}: 3 host calls x 2 device iterations x "
        f"2 accumulation steps x 2 replicas; kept {kept:.0%}"
    )
    require(0.4 < kept < 0.6, f"{kept:.0%} kept, expected about half")
    require(len(set(drawn)) == len(drawn), "some draws are the same: dropped images are no chance")


def measured_memory(work: Work) -> None:
    if SIMULATED:
        raise NotHere(
            "the figures come from the Poplar compiler, which the simulator does not have"
        )
    changes = [f"ipu.{key}={value}" for key, value in PIPELINE.items()]
    command(work, "memory", RECIPE, *changes, "--measured")


def resume(work: Work) -> None:
    changes = [f"ipu.{key}={value}" for key, value in PIPELINE.items()]
    given = ["train", RECIPE, *changes, "training.epochs=2", "name=resumed"]
    given.append(f"runs={work.folder / 'runs'}")
    command(work, *given, "--overwrite")
    path = work.folder / "runs" / "resumed" / "last.pt"
    whole = load_checkpoint(path).weights
    command(work, *given, "--resume", "--checkpoint", "last-1")
    again = load_checkpoint(path).weights
    apart = [name for name in whole if not torch.equal(whole[name], again[name])]
    require(not apart, f"{len(apart)} tensors differ, the first {apart[:1]}")
    work.say(f"{len(whole)} tensors, the same bits with and without a stop after the first epoch")


def suite(work: Work) -> None:
    if SIMULATED:
        raise NotHere("this is what the suite runs on")
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "--backend", "ipu"], check=False)
    require(done.returncode == 0, f"pytest: exit status {done.returncode}")


MODEL = {"POPTORCH_IPU_MODEL": "1"}

STAGES: List[Stage] = [
    Stage("doctor", "the SDK is in use and sees IPUs", "enabled SDK, torch 2.0.1, gc-info", doctor),
    Stage(
        "operators",
        "each operator of our programs compiles, and its result and gradient are the CPU's",
        "the operator's name in the PopTorch error; tests/hardware/operators.py has its program",
        each_operator,
    ),
    Stage(
        "model",
        "a small run of two pipeline stages trains on the SDK's IPU Model",
        "what the compiler says: no IPU is involved",
        smoke,
        MODEL,
    ),
    Stage(
        "offline",
        "the pipeline compiles for IPUs in each precision, without one",
        "the first precision that fails; ipu-proxynorm preflight",
        offline,
    ),
    Stage(
        "one-ipu",
        "a run on one IPU in 32.32 learns, with the simulator's losses",
        "the first host call: apart there, the forward pass; later, the update",
        one_ipu,
    ),
    Stage(
        "16.32",
        "the same in 16.32: float16 activations, float32 weights",
        "type errors name the operator; PopTorch's guide says otherwise than its sources here",
        half_activations,
    ),
    Stage("16.16", "the same in 16.16", "overflow: optimizer.loss_scaling", half),
    Stage(
        "pipeline",
        "two stages on two IPUs give the losses of one",
        "ipu.splits; stashes and recomputation in PopVision",
        pipeline,
    ),
    Stage(
        "replicas",
        "two replicas give the losses of one, and hold the same weights after every update",
        "gradient reduction: accumulationAndReplicationReductionType; deterministicWorkers",
        replicas,
    ),
    Stage(
        "random-numbers",
        "stochastic depth draws anew for each step, micro-batch and replica",
        "dropout of a constant may be folded while compiling (poptorch Utils.cpp:37)",
        random_numbers,
    ),
    Stage(
        "measured-memory",
        "the compiler's memory of each IPU is near the prediction",
        "PopVision's library pva; the ratio column: docs/memory.md says what is expected",
        measured_memory,
    ),
    Stage(
        "resume",
        "a run that was stopped goes on bit for bit",
        "optimiser state, random streams (rng_state), order of images",
        resume,
    ),
    Stage("suite", "the tests pass on IPUs", "the first failure", suite),
]
