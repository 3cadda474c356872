"""Each row of the table of refusals: a program that it refuses, and the nearest one accepted."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ipu_proxynorm import simulator as poptorch
from ipu_proxynorm.simulator.trace import refusals
from ipu_proxynorm.simulator.trace.handlers import ROWS, UNREAD_RESULTS

pytestmark = pytest.mark.simulator


class Pair(NamedTuple):
    """Two models that differ in one respect, and what they take."""

    refused: Callable[..., Any]
    accepted: Callable[..., Any]
    inputs: tuple
    training: bool = False


class _First(nn.Module):
    """The first result of a layer that returns several."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs):
        return self.layer(*inputs)[0]


class _Bag(nn.Module):
    """An embedding bag whose offsets are a buffer, or computed from the input."""

    def __init__(self, constant):
        super().__init__()
        self.bag = nn.EmbeddingBag(4, 2, mode="sum")
        self.register_buffer("offsets", torch.tensor([0, 2]))
        self.constant = constant

    def forward(self, x):
        return self.bag(x, self.offsets if self.constant else self.offsets * x[0])


class _Padded(nn.Module):
    """A loss of a padded tensor that depends on a parameter, or on the input alone."""

    def __init__(self, pad, trained):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.pad, self.trained = pad, trained

    def forward(self, x):
        x = self.pad(self.scale * x) if self.trained else self.scale * self.pad(x)
        return poptorch.identity_loss(x, "mean")


def _recurrent(layer, **options):
    return _First(layer(2, 2, **options))


def _recurrent_pairs(layer, name, biased):
    sequence = torch.ones(3, 1, 2)
    plain = functools.partial(_recurrent, layer)
    pairs = {
        f"{name}-layers": Pair(plain(num_layers=2), plain(), (sequence,)),
        f"{name}-dropout": Pair(plain(dropout=0.5), plain(), (sequence,)),
        f"{name}-bidirectional": Pair(plain(bidirectional=True), plain(), (sequence,)),
    }
    if biased:
        pairs[f"{name}-bias"] = Pair(plain(bias=False), plain(bias=True), (sequence,))
    return pairs


def _write_step(step):
    def forward(x):
        y = x + 1
        y[0:4:step].add_(1.0)
        return y

    return forward


def _draws(given):
    generator = torch.Generator() if given else None
    return lambda x: x + torch.empty_like(x).uniform_(generator=generator)


def _bag(**options):
    return nn.EmbeddingBag(4, 2, mode="sum", **options)


ROW = torch.ones(2, 3)
IMAGE = torch.ones(1, 2, 4, 4)
VOLUME = torch.ones(1, 1, 4, 4, 4)
CLASSES = torch.tensor([0, 2])
WEIGHT = torch.ones(3)
INDICES = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
BYTES = torch.ones(3, dtype=torch.uint8)
INTEGERS = torch.ones(3, dtype=torch.int32)
SEQUENCE = torch.full((4, 1, 3), -1.0)
LABELS = torch.tensor([[1, 2]])


def _ctc(reduction):
    return lambda x, y: F.ctc_loss(x, y, (4,), (2,), reduction=reduction)


class _Weighted(nn.Module):
    """Cross entropy with or without a weight for each class."""

    def __init__(self, weighted):
        super().__init__()
        self.register_buffer("weight", WEIGHT)
        self.weighted = weighted

    def forward(self, x, y):
        return F.cross_entropy(x, y, self.weight if self.weighted else None)


class _Affine(nn.Module):
    """A norm with a weight, and with a bias or not."""

    def __init__(self, norm, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self.bias = nn.Parameter(torch.zeros(2)) if bias else None
        self.norm = norm

    def forward(self, x):
        return self.norm(x, self.weight, self.bias)


class _Statistics(nn.Module):
    """A batch norm with a running mean, and with a running variance or not."""

    def __init__(self, both):
        super().__init__()
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("var", torch.ones(2) if both else None)

    def forward(self, x):
        return F.batch_norm(x, self.mean, self.var, training=True)


class _Frozen(nn.Module):
    """A batch norm in evaluation mode, behind a layer that is trained or not."""

    def __init__(self, trained, kind=nn.BatchNorm2d):
        super().__init__()
        self.first, self.last = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)
        self.norm = kind(2).eval()
        self.norm.requires_grad_(False)
        self.first.requires_grad_(trained)

    def forward(self, x):
        x = self.norm(self.first(x))
        return poptorch.identity_loss(self.last(x), "mean")


PAIRS = {
    "norm-frozen": Pair(_Frozen(True), _Frozen(False), (IMAGE,), training=True),
    **_recurrent_pairs(nn.LSTM, "lstm", biased=True),
    **_recurrent_pairs(nn.GRU, "gru", biased=False),
    **_recurrent_pairs(nn.RNN, "rnn", biased=True),
    "norm-affine": Pair(
        _Affine(lambda x, w, b: F.group_norm(x, 2, w, b), bias=False),
        _Affine(lambda x, w, b: F.group_norm(x, 2, w, b), bias=True),
        (IMAGE,),
    ),
    "convolution-bias-type": Pair(
        nn.Conv2d(2, 3, 1), nn.Conv2d(2, 3, 1, bias=False), (torch.ones(1, 2, 3, 3).half(),)
    ),
    "prelu-types": Pair(nn.PReLU(), nn.PReLU().half(), (torch.ones(3).half(),)),
    "attention-types": Pair(
        lambda x: F.scaled_dot_product_attention(x, x, x.float()),
        lambda x: F.scaled_dot_product_attention(x, x, x),
        (torch.ones(1, 1, 2, 2).half(),),
    ),
    "norm-statistics": Pair(_Statistics(both=False), _Statistics(both=True), (IMAGE,)),
    "convolution-output-padding": Pair(
        lambda x: torch.convolution(x, x, None, [1], [0], [1], False, [1], 1),
        lambda x: torch.convolution(x, x, None, [1], [0], [1], False, [0], 1),
        (torch.ones(1, 1, 3),),
    ),
    "transposed-dilation": Pair(
        nn.ConvTranspose2d(2, 3, 2, dilation=2), nn.ConvTranspose2d(2, 3, 2, stride=2), (IMAGE,)
    ),
    "dropout-all": Pair(
        lambda x: F.dropout(x, 1.0), lambda x: F.dropout(x, 1.0, training=False), (ROW,)
    ),
    "embedding-scaled": Pair(
        nn.Embedding(4, 2, scale_grad_by_freq=True), nn.Embedding(4, 2), (INDICES,)
    ),
    "embedding-sparse": Pair(nn.Embedding(4, 2, sparse=True), nn.Embedding(4, 2), (INDICES,)),
    "embedding-max-norm": Pair(nn.Embedding(4, 2, max_norm=1.0), nn.Embedding(4, 2), (INDICES,)),
    "embedding-bag-scaled": Pair(_bag(scale_grad_by_freq=True), _bag(), (INDICES,)),
    "embedding-bag-sparse": Pair(_bag(sparse=True), _bag(), (INDICES,)),
    "embedding-bag-padding": Pair(_bag(padding_idx=0), _bag(), (INDICES,)),
    "embedding-bag-offsets": Pair(_Bag(constant=False), _Bag(constant=True), (INDICES[1],)),
    "nll-weight": Pair(_Weighted(True), _Weighted(False), (ROW, CLASSES)),
    "smoothed-mean": Pair(
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1),
        lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1, reduction="sum"),
        (ROW, CLASSES),
    ),
    "ctc-unreduced": Pair(_ctc("none"), _ctc("mean"), (SEQUENCE, LABELS)),
    "ctc-unbatched": Pair(
        lambda x, y: F.ctc_loss(x[:, 0], y[0], (4,), (2,)), _ctc("mean"), (SEQUENCE, LABELS)
    ),
    "ctc-concatenated": Pair(
        lambda x, y: F.ctc_loss(x, y[0], (4,), (2,)), _ctc("mean"), (SEQUENCE, LABELS)
    ),
    "l1-scalar": Pair(
        lambda x: F.l1_loss(x.sum(), x.mean()), lambda x: F.l1_loss(x[:1], x[1:2]), (ROW[0],)
    ),
    "max-pool-dilation": Pair(nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(2, dilation=1), (IMAGE,)),
    "pool-stride": Pair(
        lambda x: F.max_pool2d(x, 2), lambda x: F.max_pool2d(x, 2, stride=2), (IMAGE,)
    ),
    "max-pool3d-indices": Pair(
        _First(nn.MaxPool3d(2, return_indices=True)), nn.MaxPool3d(2), (VOLUME,)
    ),
    "adaptive-pool-uneven": Pair(
        nn.AdaptiveAvgPool2d(3), nn.AdaptiveAvgPool2d((2, None)), (IMAGE,)
    ),
    "bicubic-corners": Pair(
        nn.Upsample(scale_factor=2, mode="bicubic", align_corners=True),
        nn.Upsample(scale_factor=2, mode="bicubic"),
        (IMAGE,),
    ),
    "bilinear-uneven": Pair(
        nn.Upsample(scale_factor=(2, 3), mode="bilinear"),
        nn.Upsample(scale_factor=(2, 2), mode="bilinear"),
        (IMAGE,),
    ),
    "linear-interpolation": Pair(
        nn.Upsample(scale_factor=2, mode="linear"), nn.Upsample(scale_factor=2), (IMAGE[0],)
    ),
    "trilinear-interpolation": Pair(
        nn.Upsample(scale_factor=2, mode="trilinear"), nn.Upsample(scale_factor=2), (VOLUME,)
    ),
    "unfold-unbatched": Pair(lambda x: F.unfold(x[0], 2), lambda x: F.unfold(x, 2)[0], (IMAGE,)),
    "pad-gradient": Pair(
        _Padded(nn.ReflectionPad2d(1), trained=True),
        _Padded(nn.ReflectionPad2d(1), trained=False),
        (IMAGE,),
        training=True,
    ),
    "add-bools-alpha": Pair(
        lambda x: torch.add(x > 0, x > 1, alpha=2), lambda x: torch.add(x > 0, x > 1), (ROW,)
    ),
    "cross-broadcast": Pair(
        lambda x: torch.linalg.cross(x, x[:1]),
        lambda x: torch.linalg.cross(x, x[:1].expand(2, 3)),
        (ROW,),
    ),
    "variance-correction": Pair(
        lambda x: torch.var(x, dim=0, correction=None),
        lambda x: torch.var(x, dim=0, correction=1),
        (ROW,),
    ),
    "rounded-quotient": Pair(
        lambda x, y: torch.div(x, 2.0, rounding_mode="floor"),
        lambda x, y: torch.div(y, 2, rounding_mode="trunc") + y / 2,
        (ROW, INTEGERS),
    ),
    "integer-function": Pair(lambda x: x.sqrt(), lambda x: x.float().sqrt(), (INTEGERS,)),
    "integer-floor": Pair(lambda x: x // 2, lambda x: x.float() // 2, (INTEGERS,)),
    "reduced-type": Pair(
        lambda x: x.sum(dtype=torch.float32), lambda x: x.sum(dtype=torch.int64), (INTEGERS,)
    ),
    "bitwise-bytes": Pair(lambda x: x & x, lambda x: x.int() & x.int(), (BYTES,)),
    "bitwise-mixed": Pair(lambda x: x & (x > 0), lambda x: x & (x > 0).int(), (INTEGERS,)),
    "as-strided": Pair(lambda x: x.as_strided((3, 2), (1, 3)), lambda x: x.permute(1, 0), (ROW,)),
    "triu": Pair(
        lambda x: x.triu(), lambda x: x * torch.ones(3, 3, device="ipu").triu(), (torch.ones(3, 3),)
    ),
    "step-in-place": Pair(_write_step(2), _write_step(1), (torch.ones(5),)),
    "argsort-stable": Pair(
        lambda x: torch.argsort(x, stable=True), lambda x: torch.argsort(x), (ROW,)
    ),
    "sort-scalar": Pair(
        lambda x: torch.sort(x.sum())[0], lambda x: torch.sort(x.sum().reshape(1))[0], (ROW,)
    ),
    "argmax-scalar": Pair(
        lambda x: torch.argmax(x.sum(), dim=0), lambda x: torch.argmax(x.sum()), (ROW,)
    ),
    "matrix-norm": Pair(
        lambda x: torch.linalg.matrix_norm(x, 2), lambda x: torch.linalg.matrix_norm(x), (ROW,)
    ),
    "generator": Pair(_draws(True), _draws(False), (ROW,)),
}

_MESSAGES = {row.key: row.message for row in ROWS}


PLACES = [
    [cell.strip() for cell in line.split("|")]
    for line in (Path(refusals.__file__).parent / "data" / "refusal_places.txt")
    .read_text(encoding="utf-8")
    .splitlines()
    if not line.startswith("#")
]
KINDS = ("row", "elsewhere", "torch", "internal", "machine", "unchecked")


def test_a_place_in_the_sources_is_a_row_or_left_out_not_both():
    left_out = {(file, line) for file, lines, *_ in PLACES for line in lines.split(", ")}
    assert {place[2] for place in PLACES} <= set(KINDS)
    assert all(place[3] for place in PLACES if place[2] in ("row", "elsewhere", "unchecked"))
    for row in ROWS:
        for file, line in re.findall(r"([\w/.]+):(\d+)", row.place):
            assert (f"poptorch/source/{file}", line) not in left_out


@pytest.mark.parametrize(
    "module",
    sorted({place[3].split(",")[0].split(":")[0] for place in PLACES if place[2] == "elsewhere"}),
)
def test_what_is_refused_elsewhere_has_a_module(module):
    assert (Path(poptorch.__file__).parent / module).is_file()


def _compile(model, inputs, training=False):
    if training:
        return poptorch.trainingModel(model).compile(*inputs)
    return poptorch.inferenceModel(model).compile(*inputs)


def test_there_is_a_pair_for_each_row():
    assert set(PAIRS) == set(_MESSAGES)
    assert len(ROWS) == len(_MESSAGES)


@pytest.mark.parametrize("key", sorted(PAIRS))
def test_refused(key):
    pair = PAIRS[key]
    with pytest.raises(poptorch.Error, match=re.escape(_MESSAGES[key])) as caught:
        _compile(pair.refused, pair.inputs, pair.training)
    assert re.search(r"\.py:\d+", caught.value.location)


@pytest.mark.parametrize("key", sorted(PAIRS))
def test_the_nearest_is_accepted(key):
    pair = PAIRS[key]
    _compile(pair.accepted, pair.inputs, pair.training)


# The same row reached in other ways.
OTHERS = {
    "norm-affine": [
        (_Affine(lambda x, w, b: F.layer_norm(x, (2,), w, b), bias=False), (torch.ones(3, 2),)),
        (_Affine(lambda x, w, b: F.instance_norm(x, None, None, w, b), bias=False), (IMAGE,)),
        (_Affine(lambda x, w, b: F.batch_norm(x, None, None, w, b, True), bias=False), (IMAGE,)),
        (_Affine(lambda x, w, b: F.group_norm(x, 2, b, w), bias=False), (IMAGE,)),
    ],
    "integer-function": [
        (lambda x: torch.atan2(x, x), (INTEGERS,)),
    ],
    "reduced-type": [
        (lambda x: x.half().mean(dtype=torch.float32), (ROW,)),
        (lambda x: x.prod(1, dtype=torch.int32), (ROW,)),
    ],
    "nll-weight": [
        (lambda x, y: F.nll_loss(x, y, torch.arange(3.0).to("ipu")), (ROW, CLASSES)),
        (lambda x, y: F.nll_loss(x, y, x[0, :2, 0, 0]), (IMAGE, torch.ones(1, 4, 4).long())),
    ],
    "ctc-unreduced": [(lambda x, y: torch.ctc_loss(x, y, [4], [2], 0, 0), (SEQUENCE, LABELS))],
    "transposed-dilation": [(nn.ConvTranspose1d(2, 3, 2, dilation=2), (IMAGE[0],))],
    "dropout-all": [
        (lambda x: nn.Dropout(1.0)(x), (ROW,)),
        (lambda x: torch.dropout(x, 1.0, True), (ROW,)),
        (lambda x: F.dropout2d(x, 1.0), (IMAGE,)),
    ],
    "sort-scalar": [
        (lambda x: torch.topk(x.sum(), 1)[0], (ROW,)),
        (lambda x: torch.argsort(x.sum()), (ROW,)),
    ],
    "argmax-scalar": [(lambda x: x.sum().argmin(0), (ROW,))],
    "pool-stride": [
        (lambda x: F.avg_pool2d(x, 2), (IMAGE,)),
        (lambda x: F.max_pool1d(x[0], 2), (IMAGE,)),
        (lambda x: F.max_pool3d(x, 2), (VOLUME,)),
        (lambda x: F.avg_pool3d(x, 2), (VOLUME,)),
        (lambda x: F.lp_pool2d(x, 2, 2), (IMAGE,)),
    ],
    "adaptive-pool-uneven": [
        (lambda x: F.adaptive_avg_pool1d(x[0], 3), (IMAGE,)),
        (lambda x: F.adaptive_avg_pool3d(x, (4, 4, 3)), (VOLUME,)),
    ],
    "bitwise-bytes": [(lambda x: ~x, (BYTES,)), (lambda x: torch.bitwise_xor(x, x), (BYTES,))],
    "bitwise-mixed": [(lambda x: (x > 0) | x, (INTEGERS,)), (lambda x: x & True, (INTEGERS,))],
    "matrix-norm": [
        (lambda x: torch.linalg.norm(x, -2), (ROW,)),
        (lambda x: torch.norm(x, "nuc"), (ROW,)),
        (lambda x: x.norm("nuc"), (ROW,)),
    ],
    "generator": [(lambda x: torch.bernoulli(x, generator=torch.Generator()), (ROW,))],
    "step-in-place": [
        (lambda x: (x + 1)[:, ::2].mul_(2), (ROW,)),
        (lambda x: (x + 1)[::2][0].mul_(2), (torch.ones(4, 3),)),
    ],
}


@pytest.mark.parametrize(
    ("key", "model", "inputs"), [(key, *other) for key in OTHERS for other in OTHERS[key]]
)
def test_refused_in_other_ways(key, model, inputs):
    with pytest.raises(poptorch.Error, match=re.escape(_MESSAGES[key])):
        _compile(model, inputs)


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (_recurrent(nn.GRU, bias=False), (torch.ones(3, 1, 2),)),  # the one layer that may
        (lambda x: F.avg_pool1d(x[0], 2), (IMAGE,)),  # torch fills in the stride
        (lambda x: torch.linalg.norm(x, 2, dim=1), (ROW,)),  # of vectors
        (lambda x: torch.norm(x, 2), (ROW,)),
        (lambda x: x & 3, (INTEGERS,)),
        (_bag(), (INDICES,)),  # offsets that torch makes
        (lambda x: (x + 1)[1:].mul_(2), (ROW,)),
        (lambda x: x / 2.5, (INTEGERS,)),  # converted to floats
        (lambda x: 2 / x, (INTEGERS,)),  # a reciprocal
        (lambda x: x * (torch.arange(3, device=x.device) / 2), (ROW,)),  # torch's, of constants
        (lambda x: x * torch.arange(3, device=x.device).sqrt(), (ROW,)),
        (lambda x: (x > 0).sum(dtype=torch.int32), (ROW,)),
    ],
)
def test_accepted(model, inputs):
    _compile(model, inputs)


def _indices_read(x):
    pooled, indices = F.max_pool2d(x, 2, 2, return_indices=True)
    return pooled, indices.float()


def test_results_that_are_not_made_cannot_be_used():
    assert "max_pool2d_with_indices" in UNREAD_RESULTS
    line = inspect.getsourcelines(_indices_read)[1] + 1
    with pytest.raises(poptorch.Error, match="only its first result can be used") as caught:
        _compile(_indices_read, (IMAGE,))
    assert caught.value.location == f"{__file__}:{line}"
    _compile(lambda x: _indices_read(x)[0], (IMAGE,))
    with pytest.raises(poptorch.Error, match="only its first result can be used"):
        _compile(lambda x: torch.native_layer_norm(x, (3,), None, None, 1e-5), (ROW,))
