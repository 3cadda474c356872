"""One suite for every backend: ``pytest --backend sim|double|ipu-model|ipu``."""

from __future__ import annotations

import gc
import itertools
import os
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# The same examples on every run: what fails in CI fails on a desk, and the other way round.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

BACKENDS = ("sim", "double", "ipu-model", "ipu")
DOUBLE = str(Path(__file__).resolve().parent / "double")
LEFT_OUT = {
    "hardware": "needs IPUs (make test-ipu)",
    "simulator": "shows what only the simulator can",
}


def pytest_addoption(parser):
    parser.addoption(
        "--backend",
        choices=BACKENDS,
        help="sim: the simulator; double: the real API's names, simulated underneath; ipu-model: "
        "the SDK's IPU Model; ipu: IPUs. Default: the best that this machine has",
    )


def pytest_configure(config):
    """Settle the folder and the backend before any test module imports it."""
    os.chdir(Path(__file__).resolve().parents[1])  # tests read README, docs and configs
    asked = config.getoption("--backend")
    if asked is not None:
        os.environ["IPU_PROXYNORM_BACKEND"] = "simulator" if asked == "sim" else "sdk"
    if asked == "double":
        sys.path.insert(0, DOUBLE)
        paths = [DOUBLE, os.environ.get("PYTHONPATH", "")]  # of the processes that tests start
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if asked == "ipu-model":
        os.environ["POPTORCH_IPU_MODEL"] = "1"
    try:
        from ipu_proxynorm.backend import SIMULATED, poptorch
    except ImportError as error:
        raise pytest.UsageError(
            f"--backend {asked}: needs the Poplar SDK's poptorch, which cannot be imported "
            f"({error}); enable the SDK, or use --backend sim"
        ) from error
    if asked == "ipu" and not poptorch.ipuHardwareIsAvailable():
        raise pytest.UsageError(
            "--backend ipu: poptorch sees no IPU; use --backend ipu-model or --backend sim"
        )
    best = "ipu" if poptorch.ipuHardwareIsAvailable() else "ipu-model"
    config.backend = asked or ("sim" if SIMULATED else best)
    torch.set_num_threads(1)


def pytest_report_header(config):
    return f"backend: {config.backend}"


def pytest_collection_finish(session):
    """Collect garbage seldom, and not among what stays: that was a sixth of the tests' time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(config, items):
    unavailable = {
        "sim": ["hardware"],
        "double": ["hardware", "simulator"],
        "ipu-model": ["hardware", "simulator"],
        "ipu": ["simulator"],
    }
    for item in items:
        for marker in unavailable[config.backend]:
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=LEFT_OUT[marker]))


def pytest_terminal_summary(terminalreporter, config):
    """Say how many tests ran on which backend, and how many could not."""
    stats = terminalreporter.stats
    ran = sum(len(stats.get(outcome, [])) for outcome in ("passed", "failed"))
    skipped = [str(report.longrepr) for report in stats.get("skipped", [])]
    left_out = [
        f"{sum(reason in text for text in skipped)} {reason}"
        for reason in LEFT_OUT.values()
        if any(reason in text for text in skipped)
    ]
    terminalreporter.write_line(
        f"backend {config.backend}: {ran} tests ran; left out: {', '.join(left_out) or 'none'}"
    )


@pytest.fixture(autouse=True)
def seed():
    """No test depends on the order in which tests run."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def at_call():
    """Return what has this process, a child of the test's, do something before a host call of it.

    What is done then comes at its instant, however slow or fast the machine is.
    """

    def arrange(number, act):
        from ipu_proxynorm.training.executor import TrainingExecutor

        inner, calls = TrainingExecutor.__call__, itertools.count(1)

        def call(*arguments):
            if next(calls) == number:
                act()
            return inner(*arguments)

        TrainingExecutor.__call__ = call

    return arrange
