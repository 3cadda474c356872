"""Predicts memory before the training program compiles: an error or a warning, without the wait."""

from __future__ import annotations

import warnings
from typing import Any, Callable, Optional, Sequence

import torch
from torch import Tensor, nn

from ipu_proxynorm.config import RunConfig
from ipu_proxynorm.errors import UserError, UserNotice
from ipu_proxynorm.ipu import split_points
from ipu_proxynorm.memory import (
    OUT_OF_MEMORY,
    SAFE,
    UNCERTAIN,
    Layout,
    Prediction,
    capture,
    ensemble,
    find_chip,
)
from ipu_proxynorm.memory.convolutions import needed
from ipu_proxynorm.memory.geometry import Geometry, forward_pass, input_pass, weight_pass
from ipu_proxynorm.memory.table import describe, sentence
from ipu_proxynorm.prediction.advice import predict_run
from ipu_proxynorm.prediction.footprint import run_layout

Check = Callable[[Sequence[Tensor]], None]

# More than any layer of ours has, forward and backward, and copies of what it moves.
_OPERATORS, _COPIES = 60, 16


def memory_check(
    config: RunConfig, program: nn.Module, options: Any, optimizer: torch.optim.Optimizer
) -> Check:
    """Return what to call with the inputs of a host call before the program compiles.

    It raises `UserError` with the table and advice where over 115 % of an IPU is predicted, and
    warns where it is uncertain whether the program fits. With ``ipu.check_memory`` off it does
    nothing.
    """

    def check(inputs: Sequence[Tensor]) -> None:
        if not config.ipu.check_memory:
            return
        micro_batch = [t[: config.ipu.micro_batch_size].to("meta") for t in inputs]
        layout = run_layout(config.ipu, options, optimizer)
        if surely_fits(program, micro_batch, layout):
            return
        captured = capture(program, micro_batch, precision=config.ipu.precision, options=options)
        points = [f"model.{point}" for point in split_points(program.model)]  # type: ignore[arg-type]
        judge(predict_run(config, captured, layout, points, advice=None))

    return check


def judge(prediction: Prediction) -> None:
    """Refuse a program that will not fit, and warn of one that may not.

    Raises:
        UserError: over 115 % of an IPU's memory is predicted.
    """
    if prediction.verdict.name == OUT_OF_MEMORY:
        raise UserError(
            f"the program will not fit, by prediction (ipu.check_memory=false compiles it all the "
            f"same): {describe(prediction)}"
        )
    if prediction.verdict.name == UNCERTAIN:
        advice = "; ".join(map(str, prediction.advice))
        text = f"memory {sentence(prediction)}" + (f"; what would help: {advice}" if advice else "")
        warnings.warn(text, UserNotice, stacklevel=2)


def surely_fits(program: nn.Module, inputs: Sequence[Tensor], layout: Layout) -> bool:
    """Tell whether a program is so small that nothing need be traced to see that it fits.

    A bound for one IPU: as if every layer kept activations of the images' height and width and of
    the widest layer's channels, and shared no code. Holds for networks that do not enlarge images.
    """
    chip, parameters = find_chip(layout.chip), ensemble()[0]
    layers = [m for m in program.modules() if not list(m.children())]
    weights = [m.weight for m in layers if isinstance(m, (nn.Conv2d, nn.Linear))]
    if not weights or inputs[0].dim() != 4:
        return False
    images, pixels = inputs[0].shape[0], inputs[0].shape[2] * inputs[0].shape[3]
    elements = images * pixels * max(max(w.shape[0], w.shape[1]) for w in weights)
    most = SAFE * chip.sram_bytes / (chip.unevenness * parameters.imbalance)
    most -= (
        parameters.program
        + 3 * parameters.code_product * len(weights)
        + _OPERATORS * len(layers) * (parameters.code_other / 2 + parameters.code_call)
        + 4 * _COPIES * elements * len(layers)
        + 20 * sum(p.numel() for p in program.parameters())
        + layout.io_tiles * chip.tile_bytes
    )
    if most < 0:
        return False
    sizes = {_sizes(layer, images, pixels) for layer in layers if hasattr(layer, "weight")}
    products = [of(s) for s in sizes if s for of in (forward_pass, input_pass, weight_pass)]
    bound = min(layout.available_memory_proportion) * chip.tile_bytes
    element_bytes = 4 if layout.precision == "32.32" else 2
    temporaries = needed(products, chip.tiles, bound, element_bytes, layout.half_partials)
    return parameters.temporaries * float(temporaries.max()) <= most


def _sizes(layer: nn.Module, images: int, pixels: int) -> Optional[Geometry]:
    """Return the sizes of a convolution as if its images were as large as the network's."""
    if isinstance(layer, nn.Linear):
        return Geometry(images, 1, layer.in_features, layer.out_features)
    if not isinstance(layer, nn.Conv2d):
        return None
    channels, outputs = (count // layer.groups for count in (layer.in_channels, layer.out_channels))
    window = layer.kernel_size[0] * layer.kernel_size[1]
    return Geometry(images, layer.groups, channels, outputs, window, pixels, pixels)
