"""A run put together from its configuration: data, network, program, optimiser."""

from __future__ import annotations

import dataclasses
from typing import List

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ipu_proxynorm.config import RunConfig, loads
from ipu_proxynorm.data import ImageData, create_data
from ipu_proxynorm.errors import UserError, blame
from ipu_proxynorm.ipu import Classification, Stage, place
from ipu_proxynorm.training.arithmetic import BatchArithmetic
from ipu_proxynorm.training.checkpoint import Checkpoint
from ipu_proxynorm.training.optimizer import create_optimizer, create_schedule
from models import create_model


@dataclasses.dataclass
class Run:
    """Everything that one run is made of; ``program`` holds ``model`` and its loss."""

    config: RunConfig
    data: ImageData
    model: nn.Module
    program: Classification
    stages: List[Stage]
    arithmetic: BatchArithmetic
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR


def build(config: RunConfig) -> Run:
    """Return the run that ``config`` describes, its weights drawn from ``config.seed``.

    Raises:
        UserError: a name is unknown, the groups do not divide the channels, a split is no layer
            or out of order, a path does not exist, or the images do not fill a combined batch.
    """
    data = create_data(config.data.name, config.data.path, config.data.image_size)
    arithmetic = BatchArithmetic.of(config.ipu, data.sizes()[0])
    torch.manual_seed(config.seed)
    with blame("model", f"({config.model.name}, norm={config.model.norm})"):
        model = create_model(
            config.model.name,
            norm=config.model.norm,
            num_classes=data.num_classes,
            in_chans=data.channels,
            act_layer=config.model.activation,
            width=config.model.width,
        )
    stages = place(model, config.ipu.splits)
    optimizer = create_optimizer(config.optimizer, model)
    return Run(
        config=config,
        data=data,
        model=model,
        program=Classification(model, data.mean, data.std, config.training.label_smoothing),
        stages=stages,
        arithmetic=arithmetic,
        optimizer=optimizer,
        schedule=create_schedule(
            config.schedule, optimizer, arithmetic.host_calls, config.training.epochs
        ),
    )


def load_weights(run: Run, checkpoint: Checkpoint) -> None:
    """Give the run's network the weights of ``checkpoint``.

    Raises:
        UserError: the checkpoint is of another network.
    """
    trained, wanted = loads(checkpoint.config).model, run.config.model
    if trained != wanted:
        raise UserError(
            f"checkpoint of epoch {checkpoint.epoch} holds a network of {trained}, but the run's "
            f"configuration asks for {wanted}; use the checkpoint with the configuration it was "
            f"trained with"
        )
    run.model.load_state_dict(checkpoint.weights)
