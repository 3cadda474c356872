"""The call that creates the same network in torchvision or timm, where they have it."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple

from ipu_proxynorm.errors import UserError, unknown_name
from ipu_proxynorm.models.efficientnet import EfficientNet
from ipu_proxynorm.models.factory import MODELS, architecture

#: Who else has networks of ours.
PROVIDERS = ("torchvision", "timm")

_RESNETS = tuple(f"resnet{depth}" for depth in (18, 34, 50, 101, 152))
_EFFICIENTNETS = tuple(f"efficientnet_b{number}" for number in range(8))
#: The networks that each has under our name.
NETWORKS: Dict[str, Tuple[str, ...]] = {
    "torchvision": (*_RESNETS, "resnext50_32x4d", *_EFFICIENTNETS),
    "timm": (
        *_RESNETS,
        *(f"resnetv2_{depth}" for depth in (18, 34, 50, 101, 152)),
        "resnext50_32x4d",
        "resnext101_32x4d",
        *_EFFICIENTNETS,
    ),
}
# ε of their Batch Norm: torchvision's largest EfficientNets have TensorFlow's.
_EPS = 1e-5
_TORCHVISION_EPS = {f"efficientnet_b{number}": 1e-3 for number in (5, 6, 7)}


def creating_call(
    provider: str,
    name: str,
    norm: str,
    num_classes: int,
    in_chans: int = 3,
    options: Optional[Mapping[str, Any]] = None,
) -> str:
    """Return the Python expression that creates the same network with torchvision or timm.

    It loads the weights that :func:`models.weights.to_torchvision` or ``to_timm`` give, with
    ``strict=True``, and computes the same in evaluation.

    Args:
        provider: one of :data:`PROVIDERS`.
        name: the name of the network, as :func:`models.factory.create_model` takes it.
        norm: norm spec.
        num_classes: outputs of the classifier.
        in_chans: channels of the images.
        options: other arguments of ``create_model``; None stands for what was published.

    Raises:
        UserError: the provider has no such network.
    """
    if provider not in PROVIDERS:
        raise unknown_name("provider", provider, PROVIDERS)
    chosen = {key: value for key, value in (options or {}).items() if value is not None}
    if name not in NETWORKS[provider]:
        raise UserError(f"{provider} has no {name}; it has {', '.join(NETWORKS[provider])}")
    _refuse_options(provider, name, chosen)
    gn = provider == "timm" and (name, norm) == ("resnet50", "gn32")
    if norm != "bn" and not gn:
        proxy = ": Proxy Norm's parameters have no place there" if "+pn" in norm else ""
        also = " (and timm's resnet50_gn gn32)" if provider == "timm" else ""
        raise UserError(f"{provider}'s {name} has Batch Norm{also}, not {norm}{proxy}")
    arguments = [f"num_classes={num_classes}"]
    if in_chans != 3:
        if provider == "torchvision":
            raise UserError(f"{provider}'s networks take images of 3 channels, not {in_chans}")
        arguments.append(f"in_chans={in_chans}")
    arguments += _eps_arguments(provider, name, gn, chosen.get("norm_eps"))
    if provider == "torchvision":
        return f"torchvision.models.{name}({', '.join(arguments)})"
    return f"timm.create_model({', '.join([repr('resnet50_gn' if gn else name), *arguments])})"


def _refuse_options(provider: str, name: str, chosen: Mapping[str, Any]) -> None:
    """Refuse what makes other weights or another function of a network."""
    known = architecture(name)
    efficientnet = known.network is EfficientNet
    published = {
        "act_layer": "silu" if efficientnet else "relu",
        "width": known.arguments["width"],
        "group_dim": 1,
        "expansion": 6,
        "padding": "symmetric",
    }
    for key, value in published.items():
        if chosen.get(key, value) != value:
            raise UserError(f"{provider}'s {name} has {key}={value}, not {chosen[key]}")


def _eps_arguments(provider: str, name: str, gn: bool, chosen: Optional[float]) -> List[str]:
    """Return what gives their norms the ε of ours, if that is not their own."""
    efficientnet = MODELS[name].network is EfficientNet
    own = 1e-3 if efficientnet else 1e-5
    eps = own if chosen is None else chosen
    if provider == "torchvision":
        if eps == _TORCHVISION_EPS.get(name, _EPS):
            return []
        if name in _TORCHVISION_EPS:
            raise UserError(f"{provider}'s {name} has norm_eps={_TORCHVISION_EPS[name]:g} always")
        return [f"norm_layer=functools.partial(torch.nn.BatchNorm2d, eps={eps:g})"]
    if eps == _EPS:
        return []
    if efficientnet:
        return [f"bn_eps={eps:g}"]
    layer = "GroupNorm" if gn else "BatchNormAct2d" if "v2" in name else "BatchNorm2d"
    where = "torch.nn" if layer == "BatchNorm2d" else "timm.layers"
    return [f"norm_layer=functools.partial({where}.{layer}, eps={eps:g})"]
