"""Does the double of PopTorch (tests/double) see code of ours that leans on the simulator?

    python benchmarks/double_mutants.py

Each mutant is a copy of the package with a line or two changed so that it works on the simulator
and fails on IPUs; the commands, run on the double, must fail. About 10 s each.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Mutant(NamedTuple):
    """A change to a file of the package."""

    name: str
    file: str
    old: str
    new: str


MUTANTS = [
    Mutant(
        "stages are read off what beginStage returns",
        "memory/blocks.py",
        "            stage = manager.getStage(name)",
        "            stage = manager.beginStage(name, ipu_id).stage\n"
        "            stage = manager.getStage(name)",
    ),
    Mutant(
        "a trace on meta goes through PopTorch's operators",
        "memory/operators.py",
        "        setattr(namespace, name, _REPLACEMENTS[name])\n    try:",
        "        pass\n    try:",
    ),
    Mutant(
        "memory is checked in a hook before compiling",
        "training/executor.py",
        "            self._check(inputs)\n",
        "            poptorch.registerPreCompileHook(lambda: self._check(inputs))\n",
    ),
    Mutant(
        "the executor's device is read",
        "training/executor.py",
        "return bool(self.executor.isCompiled())",
        "return self.executor._device is not None",
    ),
    Mutant(
        "placements are asked of the executor",
        "training/executor.py",
        "        self.executor.compile(*inputs)\n",
        "        self.executor.compile(*inputs)\n        self.executor.blockPlacements()\n",
    ),
    Mutant(
        "a module of the simulator's own",
        "training/timing.py",
        "    executor.detach()\n    return compilation",
        "    poptorch.schedule.of(executor.executor)\n    executor.detach()\n"
        "    return compilation",
    ),
    Mutant(
        "a trained model's executor is read",
        "training/executor.py",
        "        self._replicas = int(options.replication_factor)\n",
        "        self._replicas = int(options.replication_factor)\n        program._executor()\n",
    ),
    Mutant(
        "an argument that PopTorch's function does not have",
        "ipu/program.py",
        'poptorch.identity_loss(loss, reduction="none")',
        'poptorch.identity_loss(loss, reduction="none", weight=None)',
    ),
]


def failures(package: Path) -> List[str]:
    """Return the commands that fail on the double."""
    double = ROOT / "tests" / "double"
    environment = {
        **os.environ,
        "IPU_PROXYNORM_BACKEND": "sdk",
        "PYTHONPATH": os.pathsep.join([str(double), str(package)]),
        "OMP_NUM_THREADS": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, str(double / "inside.py"), folder],
            env=environment,
            cwd=package,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        return [done.stderr.strip().splitlines()[-1]]
    outcome: Dict[str, Any] = json.loads(done.stdout)
    commands = {name: one for name, one in outcome.items() if "status" in one}
    return [name for name, one in commands.items() if one["status"]]


def main() -> int:
    """Print what became of each mutant; 1 if one lives."""
    alive = 0
    for mutant in [Mutant("unchanged", "", "", ""), *MUTANTS]:
        with tempfile.TemporaryDirectory() as folder:
            for part in ("ipu_proxynorm", "models", "configs", "tests/double"):
                shutil.copytree(ROOT / part, Path(folder, part), symlinks=True)
            if mutant.file:
                path = Path(folder, "ipu_proxynorm", mutant.file)
                text = path.read_text(encoding="utf-8")
                assert text.count(mutant.old) == 1, mutant
                path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
            failed = failures(Path(folder))
        alive += bool(failed) != bool(mutant.file)
        print(f"{mutant.name}: {', '.join(failed) or 'nothing fails'}", flush=True)
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main())
