"""A comparison of norms: its cells, the rows that are done, and means with standard errors."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import sys
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from ipu_proxynorm.norm import parse_norm_spec

DONE, DIVERGED, UNDEFINED = "done", "diverged", "undefined"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a comparison: what it does not share with the others.

    Attributes:
        norm: norm spec.
        micro_batch: images that one replica computes at once.
        seed: the seed of weights, order of the images and device randomness.
        varied: further keys and their values, as overrides: ``training.label_smoothing=0.1``.
        own: likewise, of the norm alone: what was chosen for it.
        proxy: what is taken for the proxy's moments, of `proxies.PROXIES`; empty: Proxy Norm's own.

    """

    norm: str
    micro_batch: int
    seed: int
    varied: Tuple[str, ...] = ()
    own: Tuple[str, ...] = ()
    proxy: str = ""

    @property
    def variant(self) -> str:
        """Return the further keys in short: ``label_smoothing=0.1``; empty if there are none."""
        return _short([*self.varied, *([f"proxy={self.proxy}"] if self.proxy else [])])

    @property
    def name(self) -> str:
        """Return a folder's name of its own for the run."""
        keys = [*_short(self.own).split(", "), *self.variant.split(", ")]
        parts = [self.norm, f"mb{self.micro_batch}", *keys, f"seed{self.seed}"]
        return "_".join(part for part in parts if part).replace("/", "-")


@dataclasses.dataclass(frozen=True)
class Row:
    """What came out of one cell.

    Attributes:
        norm, micro_batch, seed, varied, own, proxy: the cell.
        fingerprint: of everything else in the configuration; rows of another one do not count.
        status: ``done``; ``diverged`` where loss or weights did not stay finite; ``undefined``
            where the norm is not defined for the network or batch, or too few micro-batches are in
            flight for the pipeline, or too few images in one for mixing.
        reason: why it diverged or is undefined; otherwise empty.
        accuracy: the share of validation images that are right after the last epoch, 0 to 1; after
            a run that diverged, that of the network as it was left.
        validation_loss: after the last epoch, nats.
        loss: mean training loss of the last epoch, nats; None where the run diverged.
        seconds_per_step: median wall time of a weight update (simulated or on IPUs).
        curve: per epoch ``loss``, ``accuracy`` (training), ``validation_loss`` and
            ``validation_accuracy``.
        losses: training loss over the run: (epochs, mean since the point before), see `thin`.

    """

    norm: str
    micro_batch: int
    seed: int
    varied: Tuple[str, ...]
    fingerprint: str
    status: str
    reason: str = ""
    accuracy: Optional[float] = None
    validation_loss: Optional[float] = None
    loss: Optional[float] = None
    seconds_per_step: Optional[float] = None
    curve: Tuple[Dict[str, Optional[float]], ...] = ()
    losses: Tuple[Tuple[float, Optional[float]], ...] = ()
    own: Tuple[str, ...] = ()
    proxy: str = ""

    @property
    def cell(self) -> Cell:
        """Return which cell the row is of."""
        own = tuple(self.own)
        return Cell(self.norm, self.micro_batch, self.seed, tuple(self.varied), own, self.proxy)


def _short(overrides: Sequence[str]) -> str:
    """Return keys without their sections: ``label_smoothing=0.1, lr=0.05``."""
    return ", ".join(
        text.rpartition("=")[0].rpartition(".")[2] + "=" + value_of(text) for text in overrides
    )


def value_of(override: str) -> str:
    """Return the value of an override ``key=value``."""
    return override.partition("=")[2]


def plan_cells(
    norms: Sequence[str],
    micro_batches: Sequence[int],
    seeds: Sequence[int],
    varied: Sequence[Sequence[str]] = (),
    own: Optional[Mapping[str, Sequence[str]]] = None,
    proxies: Sequence[str] = ("",),
) -> List[Cell]:
    """Return all cells; those of the first seed first, so that an early stop leaves a full table.

    Args:
        norms: norm specs.
        micro_batches: micro-batch sizes.
        seeds: seeds.
        varied: for each further key its overrides, e.g. ``["training.label_smoothing=0", ...]``.
        own: of a norm, the overrides of its cells alone.
        proxies: what is taken for the proxy's moments; of a norm without a proxy there is one cell.

    """
    return [
        Cell(norm, micro_batch, seed, combination, tuple((own or {}).get(norm, ())), proxy)
        for seed in seeds
        for combination in itertools.product(*varied)
        for micro_batch in sorted(micro_batches, reverse=True)
        for norm in norms
        for proxy in (proxies if parse_norm_spec(norm).proxy else ("",))
    ]


@dataclasses.dataclass(frozen=True)
class Mean:
    """Mean of n values, and its standard error (None for one value)."""

    mean: float
    error: Optional[float]
    n: int

    @classmethod
    def of(cls, values: Iterable[Optional[float]]) -> Optional[Mean]:
        """Return the mean of the values that exist; None if there are none."""
        found = [value for value in values if value is not None]
        if not found:
            return None
        n = len(found)
        error = statistics.stdev(found) / math.sqrt(n) if n > 1 else None
        return cls(statistics.fmean(found), error, n)


@dataclasses.dataclass(frozen=True)
class Summary:
    """The rows of one norm, micro-batch size and variant, over their seeds.

    Attributes:
        norm, micro_batch, variant: what the rows share.
        seeds: how many runs there are.
        undefined: why there is none; otherwise empty.
        accuracy, loss, validation_loss, seconds_per_step: means; accuracy and time also of runs
            that diverged.
        diverged: for each run that did, its seed and why.
        losses: training loss over the run, mean of the runs that did not diverge.
        own: keys and values that the norm alone has.

    """

    norm: str
    micro_batch: int
    variant: str
    seeds: int
    undefined: str
    accuracy: Optional[Mean]
    loss: Optional[Mean]
    validation_loss: Optional[Mean]
    seconds_per_step: Optional[Mean]
    diverged: Tuple[Tuple[int, str], ...]
    losses: Tuple[Tuple[float, Optional[float]], ...]
    own: Tuple[str, ...] = ()


def summarize(rows: Sequence[Row]) -> List[Summary]:
    """Return means over seeds, in the order in which norms, sizes and variants first appear."""
    groups: Dict[Tuple[str, int, str], List[Row]] = {}
    for row in rows:
        groups.setdefault((row.norm, row.micro_batch, row.cell.variant), []).append(row)
    return [_summary(key, group) for key, group in groups.items()]


def _summary(key: Tuple[str, int, str], rows: List[Row]) -> Summary:
    done = [row for row in rows if row.status in (DONE, DIVERGED)]
    reasons = [row.reason for row in rows if row.status == UNDEFINED]
    return Summary(
        *key,
        seeds=len(done),
        undefined=reasons[0] if reasons else "",
        accuracy=Mean.of(row.accuracy for row in done),
        loss=Mean.of(row.loss for row in done),
        validation_loss=Mean.of(row.validation_loss for row in done),
        seconds_per_step=Mean.of(row.seconds_per_step for row in done),
        diverged=tuple((row.seed, row.reason) for row in done if row.status == DIVERGED),
        losses=_mean_losses([row for row in done if row.status == DONE]),
        own=rows[0].own,
    )


def _mean_losses(rows: List[Row]) -> Tuple[Tuple[float, Optional[float]], ...]:
    means = []
    for points in zip(*(row.losses for row in rows)):
        mean = Mean.of(loss for _, loss in points)
        means.append((points[0][0], None if mean is None else mean.mean))
    return tuple(means)


def thin(losses: Sequence[float], epochs: float) -> Tuple[Tuple[float, Optional[float]], ...]:
    """Return at most 24 points of a run's training loss, evenly spaced.

    Args:
        losses: the losses of each host call.
        epochs: that they took together.

    Returns:
        (epochs since the beginning, mean loss since the point before, None if not finite).

    """
    count = min(24, len(losses))
    ends = [round((place + 1) * len(losses) / count) for place in range(count)]
    points: List[Tuple[float, Optional[float]]] = []
    for start, end in zip([0, *ends], ends):
        mean = math.fsum(losses[start:end]) / (end - start) if _finite(losses[start:end]) else None
        points.append((epochs * end / len(losses), mean))
    return tuple(points)


def _finite(values: Sequence[float]) -> bool:
    return all(abs(value) <= sys.float_info.max for value in values)
