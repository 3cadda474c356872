"""Weights of torchvision's and timm's networks renamed for ours, and ours renamed for theirs.

Where names agree nothing is renamed: ResNet v1.5 and ResNeXt are torchvision's and timm's,
EfficientNet is timm's. The others are renamed by rule. Nothing is dropped and nothing left as it
was: weights that do not fit are refused.
"""

from __future__ import annotations

import re
from typing import Dict, List, Mapping, Tuple

from torch import Tensor, nn

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.models.efficientnet import EfficientNet
from ipu_proxynorm.models.layers import Network
from ipu_proxynorm.models.resnetv2 import ResNetV2

#: Beginnings of names, theirs and ours; ``#`` is a number. The first that fits holds.
Names = List[Tuple[str, str]]

_GROUPING = "channel_grouping"
_TORCHVISION_EFFICIENTNET: Names = [
    ("features.0.0.", "conv_stem."),
    ("features.0.1.", "bn1."),
    ("features.8.0.", "conv_head."),
    ("features.8.1.", "bn2."),
    ("classifier.1.", "classifier."),
    # The first stage, numbered 1, has no expansion; the layers of each block are numbered.
    *(
        (f"features.1.#.block.{number}.", f"blocks.0.#.{layer}.")
        for number, layer in (
            ("0.0", "conv_dw"),
            ("0.1", "bn1"),
            ("1.fc1", "se.conv_reduce"),
            ("1.fc2", "se.conv_expand"),
            ("2.0", "conv_pw"),
            ("2.1", "bn2"),
        )
    ),
    *(
        (f"features.{stage + 1}.#.block.{number}.", f"blocks.{stage}.#.{layer}.")
        for stage in range(1, 7)
        for number, layer in (
            ("0.0", "conv_pw"),
            ("0.1", "bn1"),
            ("1.0", "conv_dw"),
            ("1.1", "bn2"),
            ("2.fc1", "se.conv_reduce"),
            ("2.fc2", "se.conv_expand"),
            ("3.0", "conv_pwl"),
            ("3.1", "bn3"),
        )
    ),
]
_TIMM_RESNETV2: Names = [
    *(
        (f"stages.{group}.blocks.#.{theirs}", f"layer{group + 1}.#.{ours}")
        for group in range(4)
        for theirs, ours in (("downsample.conv.", "shortcut."), ("", ""))
    ),
    ("head.fc.", "fc."),
]


class OtherClasses(UserError):
    """Weights are of another number of classes than the network.

    Args:
        given: the number of classes that the weights are of.
        wanted: that of the network.
    """

    def __init__(self, given: int, wanted: int) -> None:
        super().__init__(f"the weights are of {given} classes, this network has {wanted}")
        self.given, self.wanted = given, wanted


def classifier_of(model: nn.Module) -> str:
    """Return the name of the layer that answers: the last linear one; empty: there is none."""
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return linear[-1] if linear else ""


def without_classifier(model: nn.Module, weights: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """Return weights by the names of ``model``, with its own classifier in the place of theirs."""
    layer = f"{classifier_of(model)}."
    rest = {name: value for name, value in weights.items() if not name.startswith(layer)}
    own = {k: v for k, v in model.state_dict().items() if k.startswith(layer)}
    return {**rest, **own}


def check_classes(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights, by the names of ``model``, that are of another number of classes.

    Raises:
        OtherClasses: they are.
    """
    name = f"{classifier_of(model)}.weight"
    given, own = weights.get(name), model.state_dict().get(name)
    if given is None or own is None or given.dim() == 0:
        return
    if len(given) != len(own) and given.shape[1:] == own.shape[1:]:
        raise OtherClasses(len(given), len(own))


def load_torchvision(model: Network, weights: Mapping[str, Tensor], new_head: bool = False) -> None:
    """Give ``model`` the weights of torchvision's network of the same name.

    Args:
        model: a ResNet, ResNeXt or EfficientNet, with the norm that the weights were trained with.
            torchvision's EfficientNet B0 to B4 have a norm ε of 1e-5: ``norm_eps=1e-5``.
        weights: ``state_dict()`` of torchvision's network.
        new_head: leave the network's classifier as it is, and theirs away.

    Raises:
        OtherClasses: they are of another number of classes.
        UserError: weights are left over, missing, or of another shape.
    """
    _load(model, weights, _torchvision_names(model), "torchvision's weights", new_head)


def load_timm(model: Network, weights: Mapping[str, Tensor], new_head: bool = False) -> None:
    """Give ``model`` the weights of timm's network of the same name.

    Args:
        model: a ResNet, ResNet v2, ResNeXt or EfficientNet, with the norm that the weights were
            trained with. timm's ``efficientnet_b0`` ... have a norm ε of 1e-5: ``norm_eps=1e-5``.
            Its ``tf_efficientnet_b0`` ... have our ε of 1e-3 and fit by name, but pad as TensorFlow
            does, one pixel less at the left and top of a strided convolution: outputs differ.
        weights: ``state_dict()`` of timm's network.
        new_head: leave the network's classifier as it is, and theirs away.

    Raises:
        OtherClasses: they are of another number of classes.
        UserError: weights are left over, missing, or of another shape.
    """
    _load(model, weights, _timm_names(model), "timm's weights", new_head)


def load_weights(model: Network, weights: Mapping[str, Tensor], new_head: bool = False) -> None:
    """Give ``model`` weights that are named as its own.

    Args:
        model: any.
        weights: ``state_dict()`` of a network of the same names.
        new_head: leave the network's classifier as it is, and theirs away.

    Raises:
        OtherClasses: they are of another number of classes.
        UserError: weights are left over, missing, of another shape, or of a Group Norm that groups
            channels otherwise.
    """
    _load(model, weights, [], "the weights", new_head)


def to_torchvision(model: Network) -> Dict[str, Tensor]:
    """Return the weights of a ResNet, ResNeXt or EfficientNet under torchvision's names.

    Raises:
        UserError: its norms group channels as PyTorch's do not.
    """
    return _renamed(_contiguous(model), _torchvision_names(model))


def to_timm(model: Network) -> Dict[str, Tensor]:
    """Return the weights of a ResNet, ResNet v2, ResNeXt or EfficientNet under timm's names.

    Raises:
        UserError: its norms group channels as PyTorch's do not.
    """
    weights = _renamed(_contiguous(model), _timm_names(model))
    if isinstance(model, ResNetV2):  # the classifier is a 1x1 convolution
        weights["head.fc.weight"] = weights["head.fc.weight"][:, :, None, None]
    return weights


def _torchvision_names(model: Network) -> Names:
    return _TORCHVISION_EFFICIENTNET if isinstance(model, EfficientNet) else []


def _timm_names(model: Network) -> Names:
    return _TIMM_RESNETV2 if isinstance(model, ResNetV2) else []


def renamed(name: str, names: Names) -> str:
    """Return ``name`` with the first beginning of ``names`` that it has replaced."""
    for before, after in names:
        pattern = re.escape(before).replace(re.escape("#"), r"(\d+)")
        found = re.match(pattern, name)
        if found:
            return after.replace("#", "".join(found.groups())) + name[found.end() :]
    return name


def _renamed(weights: Mapping[str, Tensor], names: Names) -> Dict[str, Tensor]:
    """Return our weights under their names."""
    backwards = [(ours, theirs) for theirs, ours in names]
    return {renamed(name, backwards): value for name, value in weights.items()}


def _contiguous(model: Network) -> Dict[str, Tensor]:
    """Return the weights without what says how channels are grouped, which is PyTorch's way."""
    weights: Dict[str, Tensor] = model.state_dict()
    strided = [name for name, value in weights.items() if name.endswith(_GROUPING) and int(value)]
    if strided:
        raise UserError(
            f"{strided[0]} is strided, and PyTorch's Group Norm groups channels contiguously: "
            f"convert the weights of the network with regroup_channels"
        )
    return {name: value for name, value in weights.items() if not name.endswith(_GROUPING)}


def _load(
    model: Network, weights: Mapping[str, Tensor], names: Names, whose: str, new_head: bool
) -> None:
    given: Dict[str, Tensor] = {}
    origin: Dict[str, str] = {}
    own = model.state_dict()
    for name, value in weights.items():
        ours = renamed(name, names)
        origin[ours] = name
        # A classifier written as a 1x1 convolution has the same weights with two more axes.
        pointwise = ours in own and value.dim() == 4 and own[ours].dim() == 2
        given[ours] = value.flatten(1) if pointwise else value
    if new_head:
        given = without_classifier(model, given)
    check_classes(model, given)
    # How channels are grouped is ours to say; PyTorch's groups are contiguous, as by default.
    wanted = {name: value for name, value in own.items() if not name.endswith(_GROUPING)}
    problems = [
        (
            f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
            if found
            else ""
        )
        for found, what in (
            ([origin[name] for name in given if name not in own], "left over"),
            ([name for name in wanted if name not in given], "missing"),
            (
                [
                    f"{name} {tuple(given[name].shape)} for {tuple(value.shape)}"
                    for name, value in wanted.items()
                    if name in given and given[name].shape != value.shape
                ],
                "of another shape",
            ),
        )
    ]
    if any(problems):
        raise UserError(
            f"{whose} do not fit this {type(model).__name__}: "
            f"{', '.join(problem for problem in problems if problem)}; create the model with the "
            f"norm, depth and number of classes that the weights are of"
        )
    try:
        model.load_state_dict(given)
    except ValueError as error:  # channels are grouped otherwise
        raise UserError(f"{whose} do not fit this {type(model).__name__}: {error}") from error
