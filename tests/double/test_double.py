"""Our commands run on what PopTorch 3.4 has and does, and ask nothing else of it."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List

import pytest

pytestmark = pytest.mark.simulator

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SURFACE = json.loads((HERE / "surface.json").read_text(encoding="utf-8"))

#: The modules of PopTorch's public API; the others hold its internals.
PUBLIC = ("", ".enums", ".ops", ".optim", ".options", ".profiling", ".testing", "._poplar_executor")
#: Called by PopTorch's C++ alone.
INTERNAL = ("poptorch.ops.CPU.execute", "poptorch.ops.CPU.registerPersistentData")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> Dict[str, Any]:
    """What the commands and the probes did, in a process of its own."""
    paths = os.pathsep.join([str(HERE), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "IPU_PROXYNORM_BACKEND": "sdk"}
    folder = tmp_path_factory.mktemp("double")
    done = subprocess.run(
        [sys.executable, str(HERE / "inside.py"), str(folder)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("doctor", "backend: Poplar SDK"),
        ("train", "with the Poplar SDK"),
        ("validate", "validation loss"),
        ("resume", "resumed after epoch 1"),
        ("export", "tensors"),
        ("smoke", "smoke: passed"),
        ("memory", "fits: "),
        ("measured", "by the compiler"),
        ("plan", "chosen: "),
        ("benchmark", "on IPUs"),
        ("device data", "the device's own numbers"),
    ],
)
def test_a_command_works_on_the_double(outcome, command, words):
    assert outcome["backend"] == [False, "3.4.0"]
    assert outcome[command]["status"] == 0, outcome[command]["printed"]
    assert words in outcome[command]["printed"]


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        ("stage_of_begin_stage", "'NoneType' object has no attribute 'stage'"),
        ("simulated_executor", "has no attribute '_device'"),
        ("placements", "has no attribute 'blockPlacements'"),
        ("simulator_of_options", "Invalid attribute numbers"),
        ("module", "has no attribute 'schedule'"),
        ("executor_of_a_wrapped_model", "has no attribute '_executor'"),
        ("loss_on_meta", "is not implemented"),
        ("checkpoint_on_meta", "is not implemented"),
        ("capture_in_a_hook", "becomes a part of the program"),
    ],
)
def test_the_double_refuses_what_poptorch_has_not(outcome, probe, words):
    assert words in outcome["probes"][probe]


def parameters(function: Any, method: bool) -> List[str]:
    """Return parameters as the surface spells them."""
    found = []
    for one in list(inspect.signature(function).parameters.values())[1 if method else 0 :]:
        stars = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "")
        found.append(stars + one.name + "=" * (one.default is not one.empty))
    return found


def functions():
    """Yield a label, PopTorch's parameters and the simulator's public function of that name."""
    for module in ("poptorch" + part for part in PUBLIC):
        content = SURFACE[module]
        ours = importlib.import_module("ipu_proxynorm.simulator" + module[len("poptorch") :])
        for name, wanted in content["functions"].items():
            if not name.startswith("_"):
                yield f"{module}.{name}", wanted, getattr(ours, name), False
        for name, described in content["classes"].items():
            cls = getattr(ours, name, None)
            if name.startswith("_") or not isinstance(cls, type):
                continue
            for method, wanted in described["methods"].items():
                own = inspect.getattr_static(cls, method, None)
                static = isinstance(own, staticmethod)
                if isinstance(own, property) or (method.startswith("_") and method != "__init__"):
                    continue
                yield f"{module}.{name}.{method}", wanted, getattr(cls, method, None), not static


def test_signatures_are_poptorchs():
    wrong = []
    for label, wanted, function, method in functions():
        if label in INTERNAL:
            continue
        if not callable(function):
            wrong.append(f"{label}: missing")
        elif parameters(function, method) != wanted:
            wrong.append(f"{label}: {parameters(function, method)}, PopTorch's {wanted}")
    assert not wrong, "\n".join(wrong)


def test_the_double_has_the_names_of_the_simulators_list():
    """The surface and docs/simulator_names.md were read apart from each other."""
    page = (ROOT / "docs" / "simulator_names.md").read_text(encoding="utf-8")
    modules = [name for name in SURFACE if f"\n## {name}\n" in page]
    assert len(modules) > 10
    for module in modules:
        section = page.split(f"\n## {module}\n")[1].split("\n## ")[0]
        listed = set(re.findall(r"`(\w+)`", section.partition("(call")[0]))
        assert listed <= {*SURFACE[module]["names"]}, (module, listed - {*SURFACE[module]["names"]})
