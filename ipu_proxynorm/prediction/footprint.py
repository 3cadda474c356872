"""What memory predictions need of a run: its program without values, its images' sizes alone."""

from __future__ import annotations

import dataclasses
from typing import Any, Callable, List, Optional, Sequence

import torch
from torch import Tensor

from ipu_proxynorm.config import IPUConfig, RunConfig, TrainingConfig
from ipu_proxynorm.data import ImageData
from ipu_proxynorm.ipu import split_points, training_options
from ipu_proxynorm.memory import Capture, Layout, capture, read_optimizer, read_options
from ipu_proxynorm.models import Network
from ipu_proxynorm.run.mixing import draw
from ipu_proxynorm.run.run import create_program, run_data


@dataclasses.dataclass(frozen=True)
class Footprint:
    """A run as memory predictions see it.

    Attributes:
        config: the run's.
        model: on the meta device, cut into stages.
        capture: operators and tensors of one micro-batch.
        layout: how the program lies on its IPUs.
    """

    config: RunConfig
    model: Network
    capture: Capture
    layout: Layout

    @property
    def points(self) -> List[str]:
        """Layers at which a stage may begin, as the capture names them."""
        return [f"model.{point}" for point in split_points(self.model)]


def footprint(
    config: RunConfig,
    splits: Optional[Sequence[str]] = None,
    change: Optional[Callable[[Network], object]] = None,
) -> Footprint:
    """Trace the program of a run, forward and backward, without data and without values.

    It is of plain operators, also where ``ipu.proxy_norm_operator`` is set: what its units take on
    an IPU nobody has seen.

    Args:
        config: the configuration of the run.
        splits: instead of the configuration's; ``[]``: one stage, which can be cut afterwards.
        change: what is done to the network first.

    Raises:
        UserError: what the configuration describes cannot be built or traced.
    """
    ipu = config.ipu
    if splits is not None:
        ipu = dataclasses.replace(ipu, splits=list(splits), recomputation_checkpoints=[])
        config = dataclasses.replace(config, ipu=ipu)
    plain = dataclasses.replace(config, ipu=dataclasses.replace(ipu, proxy_norm_operator=None))
    data = run_data(config.data, config.model.name)
    batch = ipu.images_per_update
    with torch.device("meta"):
        model, _, program, optimizer = create_program(plain, data, batch, change=change)
    options = training_options(config)
    layout = run_layout(ipu, options, optimizer)
    captured = capture(
        program,
        micro_batch(ipu.micro_batch_size, config.training, data),
        precision=ipu.precision,
        options=options,
    )
    return Footprint(config, model, captured, layout)


def micro_batch(size: int, training: TrainingConfig, data: ImageData) -> List[Tensor]:
    """Return inputs of one micro-batch, without values: images, labels, numbers of the mixing.

    Args:
        size: the number of images.
        training: says how images are mixed.
        data: gives the images' shape.
    """
    shape = (size, data.channels, *data.image_size)
    mixing = [torch.empty_like(t, device="meta") for t in draw(training, shape, 0, 1, 0)]
    images = torch.empty(shape, dtype=torch.uint8, device="meta")
    return [images, torch.empty(shape[:1], dtype=torch.long, device="meta"), *mixing]


def run_layout(ipu: IPUConfig, options: Any, optimizer: torch.optim.Optimizer) -> Layout:
    """Return how a run's program lies on its IPUs."""
    layout = dataclasses.replace(
        read_options(options),
        chip=ipu.chip,
        replicas=ipu.replication_factor,  # the options may be one process's
        precision=ipu.precision,
        half_partials=ipu.half_partials,
        eight_bit_io=True,
        overlap_io=ipu.overlap_io,
    )
    return dataclasses.replace(layout, optimizer=read_optimizer(optimizer, layout.weight_bytes))
