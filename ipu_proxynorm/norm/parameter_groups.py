"""Which parameters decay: the optimizer's parameter groups of a network with norms."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from torch import nn

from ipu_proxynorm.norm.modules import ProxyNormAct


def parameter_groups(
    model: nn.Module, weight_decay: float, proxy_weight_decay: Optional[float] = None
) -> List[Dict[str, Any]]:
    """Return parameter groups for any torch optimizer: decayed, not decayed, proxy.

    Weights of two and more dimensions decay; scales and shifts of norms, biases and other vectors
    do not; β̃ and γ̃, the only normalization parameters under weight decay, form a group of their
    own. Parameters that do not require gradients are left out, a shared one counts once.

    Args:
        model: any module.
        weight_decay: the weight decay of the decayed weights.
        proxy_weight_decay: the weight decay of β̃ and γ̃; ``weight_decay`` when None.

    Returns:
        Dictionaries with ``name``, ``params`` and ``weight_decay``; empty groups are left out.

    """
    proxies = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ProxyNormAct)
        for parameter in (module.proxy_weight, module.proxy_bias)
    }
    decays = {
        "decayed": weight_decay,
        "not decayed": 0.0,
        "proxy": weight_decay if proxy_weight_decay is None else proxy_weight_decay,
    }
    members: Dict[str, List[nn.Parameter]] = {name: [] for name in decays}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in proxies:
            members["proxy"].append(parameter)
        else:
            members["decayed" if parameter.dim() > 1 else "not decayed"].append(parameter)
    return [
        {"name": name, "params": members[name], "weight_decay": decays[name]}
        for name in decays
        if members[name]
    ]


def describe_parameter_groups(groups: List[Dict[str, Any]]) -> str:
    """Return one line a group: name, weight decay, numbers of tensors and of values."""
    return "\n".join(
        f"{group['name']:<12} weight decay {group['weight_decay']:<10g} "
        f"{len(group['params']):>5} tensors {sum(p.numel() for p in group['params']):>12,} values"
        for group in groups
    )
