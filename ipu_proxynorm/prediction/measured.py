"""The compiler's own memory figures of a run's program; not run on hardware."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import List

import torch

from ipu_proxynorm.backend import SIMULATED, poptorch
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.ipu import training_options
from ipu_proxynorm.prediction.footprint import micro_batch
from ipu_proxynorm.run.run import create_program, run_data


def refuse_without_sdk() -> None:
    """Refuse to measure where programs are simulated.

    Raises:
        UserError: there is no compiler here.
    """
    if SIMULATED:
        raise UserError(
            "--measured: the figures come from the Poplar compiler, which the simulator does not "
            "have; run this on a machine with the SDK, or leave --measured out"
        )


def measure(config: RunConfig) -> List[int]:
    """Compile the run's training program with profiling; return the bytes of each IPU.

    A program that does not fit is measured, too. Written after the documentation of PopVision's
    analysis library (``pva``), and not run: there is no SDK where this project is developed.

    Raises:
        UserError: the library is missing, or the compiler has left no profile.
    """
    try:
        import pva
    except ImportError as error:
        raise UserError(
            f"--measured: the compiler's profile is read with pva, which cannot be imported "
            f"({error}); enable the Poplar SDK's PopVision, or leave --measured out"
        ) from error

    data = run_data(config.data, config.model.name)
    ipu = config.ipu
    images = ipu.images_per_update
    _, _, program, optimizer = create_program(config, data, images)
    options = training_options(config)
    options.useOfflineIpuTarget()
    times = images * ipu.device_iterations // ipu.micro_batch_size
    inputs = [
        torch.zeros((t.shape[0] * times, *t.shape[1:]), dtype=t.dtype)
        for t in micro_batch(ipu.micro_batch_size, config.training, data)
    ]
    with tempfile.TemporaryDirectory() as folder:
        engine = {"autoReport.all": "true", "autoReport.directory": folder,
                  "debug.allowOutOfMemory": "true"}  # fmt: skip
        before = os.environ.get("POPLAR_ENGINE_OPTIONS")
        os.environ["POPLAR_ENGINE_OPTIONS"] = json.dumps(engine)
        try:
            poptorch.trainingModel(program, options, optimizer).compile(*inputs)
        finally:
            if before is None:
                del os.environ["POPLAR_ENGINE_OPTIONS"]
            else:
                os.environ["POPLAR_ENGINE_OPTIONS"] = before
        path = next(iter(sorted(Path(folder).rglob("profile.pop"))), None)
        if path is None:
            raise UserError(
                f"--measured: the compiler has left no profile.pop in {folder}; expected one by "
                f"autoReport.all in POPLAR_ENGINE_OPTIONS: is another profiler set?"
            )
        report = pva.openReport(str(path))
        ipus = report.compilation.ipus
        return [sum(tile.memory.total.excludingGaps for tile in one.tiles) for one in ipus]
