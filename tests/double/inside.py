"""Runs the commands against the double, in one process: ``inside.py FOLDER``; prints JSON.

For each command its exit status and what it printed; for each probe what came of it. A probe asks,
as our own code would, for something that PopTorch does not have or does not do.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any, Dict

import torch

from ipu_proxynorm import backend
from ipu_proxynorm.cli import main

SMALL = ["training.epochs=1", "ipu.micro_batch_size=16", "model.name=resnetv2_8"]

PROBES = """
def stage_of_begin_stage():
    poptorch.Options()._execution_strategy._stages_manager.beginStage("a", 1).stage

def simulated_executor():
    poptorch.inferenceModel(linear)._device

def placements():
    poptorch.inferenceModel(linear).blockPlacements()

def simulator_of_options():
    poptorch.Options()._tensor_locations.numbers

def module():
    poptorch.schedule

def executor_of_a_wrapped_model():
    model = torch.nn.Linear(2, 2)
    kept = poptorch.trainingModel(model)
    model._executor

def loss_on_meta():
    poptorch.identity_loss(meta * 2, reduction="sum").backward()

def checkpoint_on_meta():
    poptorch.recomputationCheckpoint(meta * 2).sum().backward()

def capture_in_a_hook():
    kept = poptorch.registerPreCompileHook(lambda: capture(linear, [torch.ones(3, 2)]))
    try:
        poptorch.inferenceModel(linear).compile(torch.ones(3, 2))
    finally:
        kept.remove()
"""


def command(*arguments: str) -> Dict[str, Any]:
    """Return exit status and output of a command."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            status = main(list(arguments))
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
    return {"status": status, "printed": printed.getvalue()}


def probe() -> Dict[str, str]:
    """Return the error of each probe, which runs as code of the package; "" where there is none."""
    from ipu_proxynorm.memory.capture import capture

    names: Dict[str, Any] = {"__name__": "ipu_proxynorm.probe", "poptorch": backend.poptorch}
    names.update(torch=torch, capture=capture, linear=torch.nn.Linear(2, 2))
    names["meta"] = torch.ones(3, device="meta", requires_grad=True)
    known = set(names)
    exec(PROBES, names)
    probes = sorted(set(names) - known - {"__builtins__"})
    return {name: error_of(names[name]) for name in probes}


def error_of(function: Any) -> str:
    """Return what a function raises; "" if nothing."""
    try:
        function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def run(folder: Path) -> Dict[str, Any]:
    """Run all commands, each on what those before have left."""
    quick = "configs/quickstart.yaml"
    small = [quick, *SMALL, f"runs={folder}"]
    trained = str(folder / "quickstart")
    found: Dict[str, Any] = {"backend": [backend.SIMULATED, backend.poptorch.__version__]}
    found["doctor"] = command("doctor")
    found["train"] = command("train", *small)
    found["validate"] = command("validate", trained)
    found["resume"] = command("train", *small, "training.epochs=2", "--resume")
    found["export"] = command("export", trained, str(folder / "weights.pt"))
    found["smoke"] = command("train", quick, "--smoke", f"runs={folder}")
    found["memory"] = command("memory", *small, "ipu.recomputation_checkpoints=[layer1.0]")
    found["measured"] = command("memory", *small, "--measured")
    found["plan"] = command("plan", quick, "--ipus", "2", "--global-batch", "16")
    found["benchmark"] = command("benchmark", *small, "--calls", "1")
    found["device data"] = command("benchmark", *small, "--calls", "1", "--device-data")
    found["probes"] = probe()
    return found


if __name__ == "__main__":
    json.dump(run(Path(sys.argv[1])), sys.stdout)
