"""A run's host calls, timed: on its own images, or on numbers that the device makes itself."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from typing import Any, Iterator, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ipu_proxynorm.backend import at_once, poptorch
from ipu_proxynorm.config import IPUConfig, RunConfig
from ipu_proxynorm.data import ImageData, training_loader, watched
from ipu_proxynorm.ipu import Classification, training_options
from ipu_proxynorm.prediction.check import memory_check
from ipu_proxynorm.run.arithmetic import BatchArithmetic
from ipu_proxynorm.run.fine_tuning import set_training_mode
from ipu_proxynorm.run.mixing import draw
from ipu_proxynorm.run.run import build, create_program, run_data
from ipu_proxynorm.training.executor import TrainingExecutor


@dataclasses.dataclass(frozen=True)
class Timing:
    """Wall-clock seconds of a training program.

    Attributes:
        arithmetic: the arithmetic of its batches.
        data: name of the images.
        compilation: seconds until the program was compiled.
        calls: seconds of each host call, without the first one.
        waits: seconds until the host had the images of each; empty where the device makes them.
        computation: how the simulator computes the micro-batches; "" on IPUs.
    """

    arithmetic: BatchArithmetic
    data: str
    compilation: float
    calls: List[float]
    waits: List[float]
    computation: str = ""

    @property
    def images_per_second(self) -> float:
        """Images of a host call over the median of its seconds."""
        return self.arithmetic.combined_batch / statistics.median(self.calls)


class OnDevice(nn.Module):
    """A program that computes on random numbers: those for labels are reduced to classes.

    Args:
        program: the run's.
        num_classes: the number of classes of its labels.
    """

    def __init__(self, program: Classification, num_classes: int) -> None:
        super().__init__()
        self.program, self.last_class = program, num_classes - 1
        program.overlap_io = False  # nothing travels

    def forward(
        self, images: Tensor, labels: Tensor, mixing: Optional[Tensor] = None
    ) -> Tuple[Tensor, Tensor]:
        """Return what the program does: loss, 0-d, and number of right answers, 0-d.

        Args:
            images: uint8 ``(N, C, H, W)``.
            labels: integers ``(N,)``, of any value.
            mixing: ``(N, 5)``, likewise; None: images are not mixed.
        """
        classes = torch.clamp(labels, 0, self.last_class)
        loss, right = self.program(images, classes, mixing)
        return loss, right


def time_on_images(config: RunConfig, calls: int) -> Timing:
    """Train for 1 + ``calls`` host calls on the run's images, and keep nothing of it.

    Raises:
        UserError: the run cannot be built, or its images cannot be read.
    """
    run = build(config)
    set_training_mode(run.model, config.training.trainable)
    options = training_options(config)
    check = memory_check(config, run.program, options, run.optimizer)
    executor = TrainingExecutor(run.program, options, run.optimizer, config.seed, check=check)
    batches = _host_batches(config, run.data, options)
    compilation, seconds, waits = _time(executor, batches, calls)
    computation = _computation(executor)
    return Timing(run.arithmetic, run.data.name, compilation, seconds, waits, computation)


def time_on_device(config: RunConfig, calls: int) -> Timing:
    """Train for 1 + ``calls`` host calls on random numbers that the device makes.

    Nothing travels between host and device, and no image need be there.

    Raises:
        UserError: the run cannot be built.
    """
    data = run_data(config.data, config.model.name)
    arithmetic = BatchArithmetic.of(config.ipu, _combined_batch(config.ipu))
    torch.manual_seed(config.seed)
    model, _, program, optimizer = create_program(config, data, arithmetic.global_batch)
    set_training_mode(model, config.training.trainable)
    options = training_options(config)
    options.enableSyntheticData(True)
    check = memory_check(config, program, options, optimizer)
    executor = TrainingExecutor(
        OnDevice(program, data.num_classes), options, optimizer, config.seed, check=check
    )
    compilation, seconds, _ = _time(executor, _empty_batches(config, data, arithmetic), calls)
    computation = _computation(executor)
    return Timing(arithmetic, "the device's own numbers", compilation, seconds, [], computation)


def _combined_batch(ipu: IPUConfig) -> int:
    per_replica = ipu.micro_batch_size * ipu.gradient_accumulation * ipu.device_iterations
    return per_replica * ipu.replication_factor


def _host_batches(
    config: RunConfig, data: ImageData, options: poptorch.Options
) -> Iterator[List[Tensor]]:
    """Yield the inputs of host call after host call, epoch after epoch."""
    ipu = config.ipu
    loader = training_loader(
        data.train, options, ipu.micro_batch_size, config.data.workers, config.seed
    )
    for epoch in itertools.count(1):
        for call, (images, labels) in enumerate(watched(loader)):
            mixing = draw(config.training, images.shape, config.seed, epoch, call)
            yield [images, labels, *mixing]


def _empty_batches(
    config: RunConfig, data: ImageData, arithmetic: BatchArithmetic
) -> Iterator[List[Tensor]]:
    """Yield inputs that say shapes and types alone, the same ones again and again."""
    shape = (arithmetic.combined_batch, data.channels, *data.image_size)
    labels = torch.zeros(shape[:1], dtype=torch.long)
    mixing = draw(config.training, shape, config.seed, 1, 0)
    return itertools.repeat([torch.zeros(shape, dtype=torch.uint8), labels, *mixing])


def _computation(executor: TrainingExecutor) -> str:
    """Say how the simulator computes a program's micro-batches; "" on IPUs."""
    return str(at_once(executor.executor) or "") if executor.compiled else ""


def _time(
    executor: TrainingExecutor, batches: Iterator[List[Tensor]], calls: int
) -> Tuple[float, List[float], List[float]]:
    """Return seconds of the compilation, of each host call and of the wait before each.

    The first call, which also loads the program, is left out.
    """
    clock = time.perf_counter
    inputs: Any = next(batches)
    start = clock()
    executor.compile(*inputs)
    compilation = clock() - start
    executor(*inputs)
    seconds, waits = [], []
    for _ in range(calls):
        start = clock()
        inputs = next(batches)
        ready = clock()
        executor(*inputs)
        waits.append(ready - start)
        seconds.append(clock() - ready)
    executor.detach()
    return compilation, seconds, waits
