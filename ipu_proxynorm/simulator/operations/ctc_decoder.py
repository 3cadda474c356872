"""Beam search over the outputs of connectionist temporal classification."""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

import numpy as np
import torch

from .. import _impl
from ..trace.recorder import active

_Path = Tuple[int, ...]
# The log-probability of a path so far, with the last step a blank and with it a class.
_Score = Tuple[float, float]
_NEVER = float("-inf")


def _search(
    scores: np.ndarray, blank: int, beam_width: int, top_paths: int
) -> List[Tuple[float, _Path]]:
    """Return the likeliest paths and their log-probabilities.

    Args:
        scores: (T, classes) log-probabilities.
        blank: the class that stands for none.
        beam_width: paths kept at each step.
        top_paths: paths returned.

    Source: Graves et al. 2006; prefix search as of Hannun et al. 2014.

    """
    beams: Dict[_Path, _Score] = {(): (0.0, _NEVER)}
    for step in scores:
        grown: Dict[_Path, _Score] = {}

        def add(
            path: _Path, blank_score: float, class_score: float, to: Dict[_Path, _Score] = grown
        ) -> None:
            before = to.get(path, (_NEVER, _NEVER))
            to[path] = (
                float(np.logaddexp(before[0], blank_score)),
                float(np.logaddexp(before[1], class_score)),
            )

        for path, (blank_end, class_end) in beams.items():
            total = float(np.logaddexp(blank_end, class_end))
            add(path, total + step[blank], _NEVER)
            for label in range(len(step)):
                if label == blank:
                    continue
                if path and path[-1] == label:  # a repeat counts only after a blank
                    add(path, _NEVER, class_end + step[label])
                    add((*path, label), _NEVER, blank_end + step[label])
                else:
                    add((*path, label), _NEVER, total + step[label])
        ranked = sorted(grown.items(), key=lambda item: -np.logaddexp(*item[1]))
        beams = dict(ranked[:beam_width])
    best = sorted(
        ((float(np.logaddexp(*score)), path) for path, score in beams.items()), reverse=True
    )
    return best[:top_paths]


class _Decoder:
    """Decodes a batch at run time."""

    __name__ = "ctc_beam_search_decoder"

    def __init__(self, blank: int, beam_width: int, top_paths: int) -> None:
        self._blank = blank
        self._beam_width = beam_width
        self._top_paths = top_paths

    def __call__(self, scores: torch.Tensor, lengths: torch.Tensor) -> Sequence[torch.Tensor]:
        steps, batch, _ = scores.shape
        probabilities = torch.full((batch, self._top_paths), _NEVER)
        path_lengths = torch.zeros(batch, self._top_paths, dtype=torch.int32)
        paths = torch.full((batch, self._top_paths, steps), self._blank, dtype=torch.int32)
        for sample in range(batch):
            used = scores[: int(lengths[sample]), sample].double().numpy()
            found = _search(used, self._blank, self._beam_width, self._top_paths)
            for rank, (score, path) in enumerate(found):
                probabilities[sample, rank] = score
                path_lengths[sample, rank] = len(path)
                paths[sample, rank, : len(path)] = torch.tensor(path, dtype=torch.int32)
        return [probabilities.to(scores.dtype), path_lengths, paths]


def ctc_beam_search_decoder(
    probs: torch.Tensor,
    lengths: torch.Tensor,
    blank: int = 0,
    beam_width: int = 100,
    top_paths: int = 1,
) -> List[torch.Tensor]:
    """Return the likeliest paths through the outputs of a CTC network.

    Args:
        probs: (T, N, classes) log-probabilities.
        lengths: (N,) how many of the T steps count.
        blank: the class that stands for none.
        beam_width: paths kept at each step.
        top_paths: paths returned.

    Returns:
        Their log-probabilities (N, top_paths), lengths (N, top_paths), and the paths themselves
        (N, top_paths, T), filled up with blanks.

    Raises:
        poptorch.Error: an argument that is no tensor, or has another number of dimensions; or
            more paths asked for than are kept.

    """
    for name, value in (("probs", probs), ("lengths", lengths)):
        if not isinstance(value, torch.Tensor):
            raise _impl.createPoptorchError(
                f"ctc_beam_search_decoder: {name} must be a torch.tensor argument. "
                f"{type(value)} is not supported."
            )
    if probs.dim() != 3:
        raise _impl.createPoptorchError(
            "Incorrect shape for first input to CTC beam search decoder."
        )
    if lengths.shape != probs.shape[1:2]:  # PopART's op/ctcbeamsearch.cpp:72
        raise _impl.createPoptorchError(
            f"ctc_beam_search_decoder: lengths has the shape {tuple(lengths.shape)}, expected "
            f"{tuple(probs.shape[1:2])}, one for each sequence of probs."
        )
    if top_paths > beam_width:  # poplibs' lib/popnn/CTCInference.cpp:1115
        raise _impl.createPoptorchError(
            f"ctc_beam_search_decoder: top_paths={top_paths} exceeds beam_width={beam_width}: no "
            "more paths are kept than that."
        )
    decoder = _Decoder(blank, beam_width, top_paths)
    recorder = active()
    if recorder is None:
        return list(decoder(probs, lengths))
    tensors = [recorder.constant(probs), recorder.constant(lengths)]
    return list(recorder.emit(decoder, tensors, {}))
