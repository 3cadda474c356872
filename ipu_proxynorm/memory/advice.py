"""Looks for the changes that save most memory; the memory after each is predicted, not guessed."""

from __future__ import annotations

import dataclasses
from typing import Callable, Iterator, List, Optional, Sequence, Tuple

from ipu_proxynorm.chip import MIB
from ipu_proxynorm.memory import budget, calibration
from ipu_proxynorm.memory.boundaries import Boundary, boundaries
from ipu_proxynorm.memory.graph import Capture
from ipu_proxynorm.memory.layout import Layout
from ipu_proxynorm.placement import OFF_CHIP, ON_CHIP, SHARDED
from ipu_proxynorm.stages import micro_batches_needed

#: Predicted utilisation up to which a program surely fits.
SAFE = 0.85


@dataclasses.dataclass(frozen=True)
class Advice:
    """A change and what it saves on the fullest IPU, by prediction.

    Attributes:
        text: the change in words, e.g. ``micro-batch 32 instead of 64``.
        saves: bytes that the fullest IPU then takes less.
        utilisation: the utilisation of the IPU that is then the fullest.
        layout: with the change.
        micro_batch: with the change.
        splits: layers at which stages then begin; None: as before.
    """

    text: str
    saves: int
    utilisation: float
    layout: Layout
    micro_batch: int
    splits: Optional[Tuple[str, ...]] = None

    def __str__(self) -> str:
        return f"{self.text}: {self.saves / MIB:.0f} MiB less, then {self.utilisation:.0%} full"


class _Trial:
    """A program and the bytes of its fullest IPU, by the central calibration."""

    def __init__(self, capture: Capture, layout: Layout) -> None:
        self.capture, self.layout = capture, layout
        budgets = budget.ipu_budgets(capture, layout, calibration.ensemble()[0])
        fullest = max(budgets, key=lambda b: b.utilisation)
        self.budgets, self.fullest = budgets, fullest
        self.used, self.utilisation = fullest.used, fullest.utilisation

    @property
    def splits(self) -> Optional[List[str]]:
        """Layers at which stages begin, one IPU each; None: stages are not made of whole layers."""
        layers = self.capture.split_layers()
        if layers is None or len(self.budgets) != self.capture.stages:
            return None
        return list(layers)


def advise(
    capture: Capture, layout: Layout, points: Sequence[str] = (), count: int = 3
) -> Tuple[Advice, ...]:
    """Return the changes that save most on the fullest IPU, best first, one of each kind.

    Args:
        capture: the capture of the program.
        layout: its own.
        points: layers at which stages may begin; empty: wherever one tensor crosses.
        count: how many.
    """
    now = _Trial(capture, layout)
    places = [] if capture.fixed_batch else boundaries(capture, points)
    kinds: Tuple[Callable[[_Trial, List[Boundary]], Iterator[Tuple[str, _Trial]]], ...] = (
        _smaller_micro_batch,
        _recomputation,
        _checkpoints,
        _more_stages,
        _moved_splits,
        _state_elsewhere,
        _lower_proportion,
        _precision,
    )
    found = []
    for kind in kinds:
        trials = [(text, trial) for text, trial in kind(now, places) if trial.used < now.used]
        if trials:
            text, best = min(trials, key=lambda pair: pair[1].used)
            found.append(_as_advice(text, best, now))
    return tuple(sorted(found, key=lambda advice: -advice.saves)[:count])


def _as_advice(text: str, trial: _Trial, now: _Trial) -> Advice:
    moved = trial.capture.stage_names != now.capture.stage_names
    return Advice(
        text=text,
        saves=now.used - trial.used,
        utilisation=trial.utilisation,
        layout=trial.layout,
        micro_batch=trial.capture.micro_batch,
        splits=trial.capture.stage_names if moved else None,
    )


def _changed(now: _Trial, text: str, **fields: object) -> Tuple[str, _Trial]:
    layout = dataclasses.replace(now.layout, **fields)  # type: ignore[arg-type]
    return text, _Trial(now.capture, layout)


def _smaller_micro_batch(now: _Trial, _: List[Boundary]) -> Iterator[Tuple[str, _Trial]]:
    """Yield the largest micro-batch that surely fits, or 1."""
    given = now.capture.micro_batch
    if now.capture.fixed_batch or given == 1:
        return
    low, high, best = 1, given - 1, None
    while low <= high:
        middle = (low + high + 1) // 2
        trial = _Trial(now.capture.with_micro_batch(middle), now.layout)
        if trial.utilisation <= SAFE or middle == 1:
            best, low = trial, middle + 1
        else:
            high = middle - 1
    if best is not None:
        yield f"micro-batch {best.capture.micro_batch} instead of {given}", best


def _recomputation(now: _Trial, places: List[Boundary]) -> Iterator[Tuple[str, _Trial]]:
    """Yield recomputation where there is none."""
    if not now.capture.training or now.layout.recomputation == "checkpoints":
        return
    if now.capture.stages > 1:
        if now.layout.recomputation == "none":
            yield _changed(now, "recomputation in every stage but the last", recomputation="stage")
        return
    for count in (3, 7):
        layers = _spread(places, count)
        if layers:
            yield _changed(
                now,
                f"recomputation from {len(layers)} checkpoints, the outputs of {', '.join(layers)}",
                recomputation="checkpoints",
                keeps_last_segment=False,
                checkpoints=tuple(layers),
            )


def _spread(places: List[Boundary], count: int) -> List[str]:
    """Return about ``count`` layers whose outputs cross a boundary, evenly spread."""
    if not places:
        return []
    chosen = [places[(i + 1) * len(places) // (count + 1)] for i in range(count)]
    return list(dict.fromkeys(place.before for place in chosen))


def _checkpoints(now: _Trial, places: List[Boundary]) -> Iterator[Tuple[str, _Trial]]:
    """Yield one more checkpoint in the fullest IPU's stages."""
    if not now.capture.training or now.layout.recomputation == "none":
        return
    inside = [p for p in places if now.capture.operators[p.operator].stage in now.fullest.stages]
    for layer in _spread(inside, 3):
        if layer not in now.layout.checkpoints:
            yield _changed(
                now,
                f"a recomputation checkpoint at the output of {layer}",
                checkpoints=(*now.layout.checkpoints, layer),
            )


def _more_stages(now: _Trial, places: List[Boundary]) -> Iterator[Tuple[str, _Trial]]:
    """Yield the next power of two of IPUs, which PopTorch wants; the fullest is cut in two first.

    A pipeline of S stages gets the 2S - 1 micro-batches that it needs.
    """
    before = now.splits
    if before is None:
        return
    wanted = 1 << len(now.budgets).bit_length()
    trial: Optional[_Trial] = now
    while trial is not None and len(trial.budgets) < wanted:
        trial = _cut_in_two(trial, places)
    if trial is not None:
        new = [name for name in trial.capture.stage_names if name not in before]
        what = "another stage" if len(new) == 1 else "other stages"
        text = f"{wanted} IPUs a replica, {what} from {', '.join(new)}"
        if trial.layout.gradient_accumulation != now.layout.gradient_accumulation:
            text += f", gradient accumulation {trial.layout.gradient_accumulation}"
        yield text, trial


def _cut_in_two(now: _Trial, places: List[Boundary]) -> Optional[_Trial]:
    """Return the fullest stage cut where both parts are about as full; None: nowhere can it be."""
    stage, before = now.fullest.stages[0], now.splits or []
    inside = [p for p in places if now.capture.operators[p.operator].stage == stage]
    inside = [p for p in inside if p.operator != now.capture.forward(stage)[0].index]
    best: Optional[_Trial] = None
    low, high = 0, len(inside) - 1
    while low <= high:
        middle = (low + high) // 2
        names = [*before[:stage], inside[middle].layer, *before[stage:]]
        trial = _Trial(now.capture.with_splits(names), _with_a_stage(now.layout, stage, len(names)))
        if best is None or trial.used < best.used:
            best = trial
        first, second = trial.budgets[stage], trial.budgets[stage + 1]
        if first.used > second.used:
            high = middle - 1
        else:
            low = middle + 1
    return best


def _with_a_stage(layout: Layout, stage: int, splits: int) -> Layout:
    """Return the layout of a program whose ``stage`` has become two, with so many splits now."""
    shares = list(layout.available_memory_proportion)
    if len(shares) > 1:
        shares.insert(stage, layout.proportion(stage))
    least = (
        micro_batches_needed(splits + 1, True)
        if layout.optimizer and layout.schedule == "pipelined"
        else 1
    )
    return dataclasses.replace(
        layout,
        available_memory_proportion=tuple(shares),
        gradient_accumulation=max(layout.gradient_accumulation, least),
    )


def _moved_splits(now: _Trial, places: List[Boundary]) -> Iterator[Tuple[str, _Trial]]:
    """Yield splits next to the fullest IPU moved, so that it has less to hold."""
    splits = now.splits
    if not splits:
        return
    stage = now.fullest.stages[0]
    inside = [p.layer for p in places if now.capture.operators[p.operator].stage == stage]
    for step in (1, 2, 4):
        if step < len(inside):
            for index, layer in ((stage - 1, inside[step]), (stage, inside[-step])):
                names = list(splits)
                if 0 <= index < len(names):
                    text = f"stage {index + 1} from {layer} instead of {names[index]}"
                    names[index] = layer
                    yield text, _Trial(now.capture.with_splits(names), now.layout)


def _state_elsewhere(now: _Trial, _: List[Boundary]) -> Iterator[Tuple[str, _Trial]]:
    """Yield optimiser state sharded over replicas, or in Streaming Memory."""
    if now.fullest.terms["optimizer_state"] == 0 or now.layout.optimizer_location != ON_CHIP:
        return
    yield _changed(now, "optimiser state in Streaming Memory", optimizer_location=OFF_CHIP)
    if now.layout.replicas > 1:
        text = f"optimiser state sharded over {now.layout.replicas} replicas"
        yield _changed(now, text, optimizer_location=SHARDED)


def _lower_proportion(now: _Trial, _: List[Boundary]) -> Iterator[Tuple[str, _Trial]]:
    """Yield lower memory proportions; below 0.1 the code grows, so no lower ones."""
    given = now.layout.proportion(now.fullest.ipu)
    for proportion in (0.2, 0.1):
        if proportion < given:
            text = f"available memory proportion {proportion} instead of {given:g}"
            yield _changed(now, text, available_memory_proportion=(proportion,))


def _precision(now: _Trial, _: List[Boundary]) -> Iterator[Tuple[str, _Trial]]:
    """Yield float16 activations; where they are, float16 weights and float16 partial sums."""
    if now.layout.precision == "32.32":
        layout = dataclasses.replace(now.layout, precision="16.32")
        yield "precision 16.32 instead of 32.32", _Trial(now.capture.in_half_precision(), layout)
        return
    if now.layout.precision == "16.32":
        yield _changed(now, "precision 16.16 instead of 16.32", precision="16.16")
    if not now.layout.half_partials:
        yield _changed(now, "float16 partial sums", half_partials=True)
