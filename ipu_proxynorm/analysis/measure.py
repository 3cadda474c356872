"""The power after each normalization of a run's network, over its validation images."""

from __future__ import annotations

import dataclasses
from typing import Callable, Dict, Iterable, Iterator, Sequence, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ipu_proxynorm.analysis import Power, record_power
from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.data import ImageData
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import Checkpoint
from ipu_proxynorm.run.run import Run, build, load_weights

T = TypeVar("T")
#: From a network, its inputs and a pattern of layers, what is told of each layer.
Record = Callable[[nn.Module, Iterable[Tensor], str], Dict[str, T]]


@dataclasses.dataclass(frozen=True)
class Measure:
    """What is measured.

    Attributes:
        images: number of validation images, spread evenly over the set.
        batch_size: images at once; no figure depends on it.
        layers: pattern of the normalizations' names.
        noise: Gaussian noise of the images' shape instead of images.

    """

    images: int = 64
    batch_size: int = 32
    layers: str = "*"
    noise: bool = False


def on_the_host(config: RunConfig) -> RunConfig:
    """Return the configuration without pipeline: the network runs as it is, on the CPU."""
    return dataclasses.replace(config, ipu=dataclasses.replace(config.ipu, splits=[]))


def power_of(run: Run, measure: Measure, *, trained: bool) -> Dict[str, Power]:
    """Return the power after each normalization of the run's network; see :func:`observed`."""
    return observed(run, measure, record_power, trained=trained)


def observed(run: Run, measure: Measure, record: Record[T], *, trained: bool) -> Dict[str, T]:
    """Return what is recorded of each normalization of the run's network, computed in float64.

    Networks without shortcuts amplify rounding from layer to layer: 100 random layers turn that of
    float32 into 1e-2 of the power of the last, that of float64 into 1e-9.

    An untrained network's Batch Norm has no running statistics: it normalizes with those of the
    images, all in one batch. A trained one's normalizes with its running statistics.
    """
    model = run.model.double().eval()
    batch_size = measure.batch_size if trained else _with_batch_statistics(model, measure)
    if measure.noise:
        shape = (run.data.channels, *run.data.image_size)
        batches = noise(shape, measure.images, batch_size, run.config.seed)
    else:
        batches = validation_images(run.data, measure.images, batch_size)
    return record(model, (batch.double() for batch in batches), measure.layers)


def _with_batch_statistics(model: nn.Module, measure: Measure) -> int:
    """Let an untrained network's Batch Norms take the images' statistics; return the batch size."""
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    for layer in norms:
        layer.train()
    return measure.images if norms else measure.batch_size


def power_of_module(model: nn.Module, shape: Sequence[int], measure: Measure) -> Dict[str, Power]:
    """Return the power after each normalization of any network of one input, in float64.

    Its input is Gaussian noise. Batch Norms that have seen no batch are taken for untrained.

    Args:
        model: the network.
        shape: of its input, without the batch.
        measure: what is measured.

    Raises:
        UserError: the network cannot compute such an input in float64.
    """
    model = model.double().eval()
    norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    trained = any(layer.num_batches_tracked for layer in norms)
    batch_size = measure.batch_size if trained else _with_batch_statistics(model, measure)
    batches = noise(shape, measure.images, batch_size, 0)
    try:
        return record_power(model, (batch.double() for batch in batches), measure.layers)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        size = "x".join(str(length) for length in (batch_size, *shape))
        why = str(error).strip().partition("\n")[0]
        raise UserError(
            f"{type(model).__name__}: its forward cannot compute one positional float64 input of "
            f"{size}: {why}"
        ) from error


def validation_images(data: ImageData, images: int, batch_size: int) -> Iterator[Tensor]:
    """Yield validation images, spread evenly over the set, as the network sees them."""
    total = data.sizes()[1]
    count = min(images, total)
    mean = 255 * torch.tensor(data.mean).view(-1, 1, 1)
    std = 255 * torch.tensor(data.std).view(-1, 1, 1)
    chosen = [number * total // count for number in range(count)]
    for start in range(0, count, batch_size):
        pixels = torch.stack([data.validation[i][0] for i in chosen[start : start + batch_size]])
        yield (pixels.float() - mean) / std


def noise(shape: Sequence[int], images: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yield Gaussian noise in images of a shape."""
    generator = torch.Generator().manual_seed(seed)
    whole = [torch.randn(tuple(shape), generator=generator) for _ in range(images)]
    for start in range(0, images, batch_size):
        yield torch.stack(whole[start : start + batch_size])


def observed_at_start(config: RunConfig, measure: Measure, record: Record[T]) -> Dict[str, T]:
    """Return what is recorded of each normalization of a run's network at initialisation."""
    return observed(build(on_the_host(config)), measure, record, trained=False)


def observed_of_run(
    config: RunConfig, checkpoint: Checkpoint, measure: Measure, record: Record[T]
) -> Dict[str, T]:
    """Return what is recorded of each normalization of a run's network, of a checkpoint's weights.

    Raises:
        UserError: the checkpoint is of another network.
    """
    run = build(on_the_host(config))
    load_weights(run, checkpoint)
    return observed(run, measure, record, trained=True)


def check_one_network(folders: Sequence[str], configs: Sequence[RunConfig]) -> None:
    """Refuse runs that cannot be drawn together.

    Raises:
        UserError: their networks or datasets differ.
    """
    networks = dict.fromkeys((config.model.name, config.data.name) for config in configs)
    if len(networks) > 1:
        shown = " and ".join(f"{model} on {data}" for model, data in networks)
        raise UserError(
            f"RUN_DIRs {', '.join(folders)}: these are {shown}; give runs of one network on one "
            f"dataset, or analyse them one by one"
        )
