"""What ``torch.jit.script`` cannot compile says what to do instead."""

from __future__ import annotations

from typing import Any

from ipu_proxynorm.errors import UserError


class Unscriptable:
    """Mixin of units and layers that it cannot compile."""

    def __prepare_scriptable__(self) -> Any:
        """Refuse to be scripted; ``torch.jit.script`` asks each module within a network."""
        raise UserError(
            f"torch.jit.script does not take {type(self).__name__}: fold the network for inference "
            "first (ipu_proxynorm.norm.fold_proxy_norm) and script that, or use torch.jit.trace"
        )
