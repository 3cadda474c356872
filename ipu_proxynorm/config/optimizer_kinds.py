"""The optimisers: which keys each has beyond those of all, and their defaults."""

from __future__ import annotations

import dataclasses
from typing import Any, Dict, Mapping


@dataclasses.dataclass(frozen=True)
class OptimizerKind:
    """One optimiser, as a configuration names it.

    Attributes:
        keys: the keys that it has beyond those of all optimisers, and what null stands for.
        note: what to know of it, in a few words.
    """

    keys: Mapping[str, Any]
    note: str = ""


_SGD = {"momentum": 0.9, "nesterov": False}
_RMSPROP = {"momentum": 0.9, "alpha": 0.99, "eps": 1e-8}
_ADAM = {"betas": [0.9, 0.999], "eps": 1e-8}

#: By name; `run.optimizer.BUILDERS` makes each of them.
OPTIMIZERS: Dict[str, OptimizerKind] = {
    "sgd": OptimizerKind(_SGD),
    "sgd_combined": OptimizerKind(_SGD, "gradients accumulate in the velocity"),
    "rmsprop": OptimizerKind(_RMSPROP),
    "rmsprop_tf": OptimizerKind(_RMSPROP, "TensorFlow's"),
    "adam": OptimizerKind(_ADAM),
    "adamw": OptimizerKind(_ADAM),
    "lamb": OptimizerKind({**_ADAM, "max_weight_norm": 65500.0}),
}
