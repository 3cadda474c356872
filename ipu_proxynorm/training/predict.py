"""Predictions of a trained network for images of one's own."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ipu_proxynorm.config import loads
from ipu_proxynorm.data.augment import centre_crop
from ipu_proxynorm.data.decoding import Unreadable, bounded, cannot_read, decode
from ipu_proxynorm.data.files import walk_images
from ipu_proxynorm.data.libraries import transforms
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.checkpoint import load_checkpoint
from ipu_proxynorm.files.weights import SAFETENSORS, read_metadata, read_weights
from ipu_proxynorm.ipu import create_network
from ipu_proxynorm.models import Network, default_resolution
from ipu_proxynorm.norm import fold_proxy_norm
from ipu_proxynorm.run.inputs import Inputs, undescribed
from ipu_proxynorm.run.run import load_state, own_image_size
from ipu_proxynorm.training.export import chosen_weights, dimensions, find_checkpoint


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The likeliest classes of one image, the likeliest first, with their probabilities."""

    image: str
    classes: Tuple[Tuple[str, float], ...]


class Predictor(nn.Module):
    """A trained network in float32 on the CPU, from pixels to logits.

    Args:
        network: the network.
        inputs: what it is given and answers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network, self.inputs = fold_proxy_norm(network.float()), inputs
        for name, values in (("mean", inputs.mean), ("std", inputs.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, -1, 1, 1))
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits ``(N, classes)`` of pixels from 0 to 255, uint8 ``(N, C, H, W)``."""
        return self.network((pixels.float() - self.mean) / self.std)  # type: ignore[no-any-return]


def load_predictor(source: str, which: Optional[str] = None, weights: str = "raw") -> Predictor:
    """Return the network of a run, of a checkpoint, or of an exported ``.safetensors``.

    Args:
        source: a run's folder or one of those files.
        which: of a run, the checkpoint's name; None: ``last``.
        weights: ``raw`` weights, or their ``average``; of a checkpoint.

    Raises:
        UserError: there is no such file, or it does not say of which network its weights are.
    """
    path = Path(source)
    if path.suffix == SAFETENSORS:
        tensors, about = read_weights(path), read_metadata(path)
        if "config" not in about or "inputs" not in about or "network" in about:
            raise UserError(
                f"RUN_OR_WEIGHTS {source!r} does not say of which network its weights are: "
                f"expected a run, a checkpoint, or what export RUN OUT.safetensors writes"
            )
        text, epoch, values = about["config"], 0, json_of(about["inputs"])
    else:
        checkpoint = load_checkpoint(find_checkpoint(source, which))
        tensors = chosen_weights(checkpoint, weights)
        text, epoch, values = checkpoint.config, checkpoint.epoch, dict(checkpoint.inputs)
    return predictor_of(text, tensors, epoch, values)


def predictor_of(
    text: str, weights: Dict[str, Tensor], epoch: int, values: Dict[str, object]
) -> Predictor:
    """Return the network of a configuration (YAML) with weights.

    Args:
        text: the configuration.
        weights: by name.
        epoch: after which they stood so.
        values: of `Inputs`, plain; empty: an older program wrote none.
    """
    return Predictor(*network_of(text, weights, epoch, values))


def json_of(text: str) -> Dict[str, object]:
    """Return the values of JSON; of what is none, nothing."""
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def network_of(
    text: str, weights: Dict[str, Tensor], epoch: int, values: Dict[str, object]
) -> Tuple[Network, Inputs]:
    """Return the network of a configuration (YAML) with weights, and its inputs."""
    config = loads(text)
    if values:
        described = Inputs.read(values)
    else:
        own = own_image_size(config.data, config.model.name)
        size = own or default_resolution(config.model.name)
        described = undescribed(config, *dimensions(weights), size)
    classes, channels = len(described.classes), described.channels
    pixels = (described.size, described.size)
    network = create_network(config.model, classes, channels, pixels)
    load_state(
        network,
        {k: v.float() if v.is_floating_point() else v for k, v in weights.items()},
        config.model.name,
        epoch,
    )
    return network, described


def read_image(path: Path, inputs: Inputs) -> Tensor:
    """Return an image as a network is given it, uint8 ``(C, size, size)``.

    Raises:
        Unreadable: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = bounded(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise cannot_read(error) from error
    image = decode(content)
    if inputs.channels == 1:
        image = transforms().functional.rgb_to_grayscale(image)
    return centre_crop(image, inputs.size, inputs.resize / inputs.size)


def _read_or_why(path: Path, inputs: Inputs) -> Union[Tensor, str]:
    try:
        return read_image(path, inputs)
    except Unreadable as error:
        return f"{error.reason.sentence} ({error})"


def image_paths(names: Sequence[str]) -> List[Path]:
    """Return image files: those named, and all below the folders named, sorted.

    Raises:
        UserError: a name leads to nothing, or a folder holds no image.
    """
    found: List[Path] = []
    for name in names:
        path = Path(name).expanduser()
        if path.is_dir():
            inside = walk_images(path)
            if not inside:
                raise UserError(f"IMAGE {name!r}: no image in this folder, nor below it")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise UserError(f"IMAGE {name!r}: no such file or folder")
    return found


def predict(
    predictor: Predictor, paths: Sequence[Path], top: int = 5, batch: int = 32
) -> Iterator[Tuple[Path, Optional[Prediction], str]]:
    """Yield each image's path, its prediction, or None and why it cannot be read; in order.

    Args:
        predictor: the network.
        paths: image files.
        top: how many classes of each; all, where there are fewer.
        batch: images computed at once.
    """
    top = min(top, len(predictor.inputs.classes))
    for start in range(0, len(paths), batch):
        images: List[Tensor] = []
        reasons: Dict[Path, str] = {}
        some = paths[start : start + batch]
        for path in some:
            image = _read_or_why(path, predictor.inputs)
            if isinstance(image, str):
                reasons[path] = image
            else:
                images.append(image)
        with torch.no_grad():
            shares = predictor(torch.stack(images)).softmax(1) if images else torch.empty(0)
        rows = iter(shares)
        for path in some:
            if path in reasons:
                yield path, None, reasons[path]
                continue
            values, numbers = next(rows).topk(top)
            named = ((predictor.inputs.classes[int(n)], float(v)) for v, n in zip(values, numbers))
            yield path, Prediction(str(path), tuple(named)), ""
