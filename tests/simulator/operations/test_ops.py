"""Operations of PopTorch's own: values they compute, and what they refuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator


def run(function, *inputs, options=None):
    return poptorch.inferenceModel(function, options)(*inputs)


@pytest.mark.parametrize(
    "function",
    [
        poptorch.nop,
        poptorch.recomputationCheckpoint,
        lambda x: poptorch.set_available_memory(x, 0.3),
        lambda x: poptorch.ipu_print_tensor(x, "x"),
        lambda x: poptorch.set_overlap_for_input(x, poptorch.OverlapMode.NoOverlap),
        lambda x: poptorch.recomputationCheckpoint(x, x + 1)[0],
        lambda x: poptorch.recomputationCheckpoint([x, x + 1])[0],
    ],
)
def test_identities(function):
    x = torch.randn(3)
    assert torch.equal(run(function, x), x)


@pytest.mark.parametrize("function", [poptorch.nop, poptorch.ipu_print_tensor])
def test_identities_want_tensors(function):
    with pytest.raises(poptorch.Error, match="is not supported"):
        function("text")


def test_serialized_matmul():
    a, b = torch.randn(4, 6), torch.randn(6, 2)
    mode = poptorch.MatMulSerializationMode.ReducingDim
    torch.testing.assert_close(
        run(lambda a, b: poptorch.serializedMatMul(a, b, mode, 2), a, b), a @ b
    )


@pytest.mark.parametrize(
    ("mode", "lhs", "rhs", "fits"),
    [
        ("InputChannels", (6, 4), (4, 5), 3),
        ("InputChannels", (2, 3, 4), (4, 5), 6),  # leading dimensions are taken as one
        ("ReducingDim", (6, 4), (4, 5), 2),
        ("OutputChannels", (6, 4), (4, 5), 5),
    ],
)
def test_a_serialized_matmul_has_parts_of_one_size(mode, lhs, rhs, fits):
    mode = poptorch.MatMulSerializationMode[mode]
    inputs = torch.randn(lhs), torch.randn(rhs)
    run(lambda a, b: poptorch.serializedMatMul(a, b, mode, fits), *inputs)
    for factor in (0, 7):
        with pytest.raises(poptorch.Error, match=f"which factor={factor} does not divide"):
            run(lambda a, b, f=factor: poptorch.serializedMatMul(a, b, mode, f), *inputs)


def test_the_ctc_decoder_wants_a_length_for_each_sequence():
    scores = torch.randn(4, 2, 3).log_softmax(-1)
    with pytest.raises(poptorch.Error, match=r"lengths has the shape \(1,\), expected \(2,\)"):
        run(lambda s, n: poptorch.ctc_beam_search_decoder(s, n), scores, torch.tensor([4]))


def test_the_ctc_decoder_returns_no_more_paths_than_it_keeps():
    scores, lengths = torch.randn(4, 2, 3).log_softmax(-1), torch.tensor([4, 4])
    with pytest.raises(poptorch.Error, match="top_paths=3 exceeds beam_width=2"):
        run(lambda s, n: poptorch.ctc_beam_search_decoder(s, n, 0, 2, 3), scores, lengths)


@pytest.mark.parametrize("proportion", [0.0, 1.5])
def test_a_proportion_of_memory_is_in_its_range(proportion):
    x = torch.randn(2, 2)
    with pytest.raises(poptorch.Error, match=r"must be in \(0,1\]"):
        run(lambda a: poptorch.set_available_memory(a @ a, proportion), x)
    assert torch.equal(poptorch.set_available_memory(x, proportion), x)  # on the host
    options = poptorch.Options()
    options.setAvailableMemoryProportion({"IPU0": 1.0, "IPU3": proportion})  # IPU 3 has nothing
    poptorch.inferenceModel(torch.nn.Linear(2, 2), options)(x)
    options = poptorch.Options()
    options.setAvailableMemoryProportion({"IPU0": proportion})
    with pytest.raises(poptorch.Error, match=rf"has {proportion} for IPU0"):
        poptorch.inferenceModel(torch.nn.Linear(2, 2), options)(x)


def test_multi_conv():
    conv = torch.nn.Conv2d(1, 2, 3)

    class Model(torch.nn.Module):
        def __init__(self, context, inner):
            super().__init__()
            self.conv, self.context, self.inner = conv, context, inner

        def forward(self, x):
            with self.context:
                return self.inner(self, x)

    x = torch.randn(1, 1, 5, 5)
    good = Model(poptorch.MultiConv().availableMemoryProportions(0.2), lambda m, x: m.conv(x))
    torch.testing.assert_close(run(good, x), conv(x))

    def nested(model, x):
        with poptorch.MultiConv():
            return model.conv(x)

    for inner, context, message in (
        (nested, poptorch.MultiConv(), "Nested poptorch.MultiConv"),
        (lambda m, x: x, poptorch.MultiConv(), "Unexpected end_multi_conv"),
        (lambda m, x: m.conv(x), poptorch.MultiConv().enableConvDithering([True] * 2), "2 values"),
    ):
        with pytest.raises(poptorch.Error, match=message):
            run(Model(context, inner), x)
    with pytest.raises(ValueError, match="Invalid partials types"):
        poptorch.MultiConv().partialsTypes(torch.int32)


def test_printing_happens_at_every_run_with_gradients(capfd):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))

        def forward(self, x):
            y = poptorch.ipu_print_tensor(self.weight * x, "y")
            return poptorch.identity_loss(y * 3, "sum")

    model = poptorch.trainingModel(Model())
    model.compile(torch.tensor([1.5, 2.5]))
    assert capfd.readouterr().err == ""
    model(torch.tensor([1.5, 2.5]))
    assert capfd.readouterr().err == "y: (1.500, 2.500)\ny_gradient: (3.000, 3.000)\n"


@pytest.mark.parametrize(
    ("layout", "printed"),
    [
        ({}, "t: (\n (1.500, 2.000)\n (3.000, 4.250)\n)\n"),
        ({"digits": 3, "float_format": "scientific", "separator": "; "},
         "t: (\n (1.50e+00; 2.00e+00)\n (3.00e+00; 4.25e+00)\n)\n"),
        ({"open_bracket": "{", "close_bracket": "}", "separator": " ", "float_format": "none"},
         "t: {\n {1.5 2}\n {3 4.25}\n}\n"),
        ({"max_line_width": 9}, "t: (\n (1.500,\n   2.000)\n (3.000,\n   4.250)\n)\n"),
    ],
)  # fmt: skip
def test_printing_in_poplars_layout(capfd, layout, printed):
    x = torch.tensor([[1.5, 2.0], [3.0, 4.25]])
    run(lambda x: poptorch.ipu_print_tensor(x, "t", **layout), x)
    assert capfd.readouterr() == ("", printed)


def test_ctc_decoder_finds_the_likeliest_labelling():
    """Against the sum over all alignments, which 3^4 of there are."""
    scores = torch.randn(4, 1, 3).log_softmax(2)
    totals = {}
    for alignment in itertools.product(range(3), repeat=4):
        merged = [label for label, _ in itertools.groupby(alignment)]
        labelling = tuple(label for label in merged if label != 0)
        probability = math.exp(sum(float(scores[t, 0, c]) for t, c in enumerate(alignment)))
        totals[labelling] = totals.get(labelling, 0.0) + probability
    expected = sorted(totals.items(), key=lambda item: -item[1])[:2]

    probabilities, lengths, paths = run(
        lambda s, n: poptorch.ctc_beam_search_decoder(s, n, top_paths=2), scores, torch.tensor([4])
    )
    for rank, (labelling, probability) in enumerate(expected):
        assert probabilities[0, rank].exp().item() == pytest.approx(probability, rel=1e-5)
        assert lengths[0, rank] == len(labelling)
        assert tuple(paths[0, rank, : len(labelling)].tolist()) == labelling


def test_farthest_point_sampling():
    points = torch.tensor([[0.0], [1.0], [9.0], [5.0], [100.0], [101.0]])
    assert run(lambda p: poptorch.fps(p, [0, 4, 6], 0.75), points).tolist() == [0, 2, 3, 4, 5]
    with pytest.raises(poptorch.Error, match="at least 2 elements"):
        poptorch.fps(points, [0])


def test_nearest_in_the_same_sample():
    x, y = torch.tensor([[0.0], [10.0]]), torch.tensor([[11.0], [4.0], [-2.0]])
    assert run(poptorch.nearest, x, y).tolist() == [2, 0]
    nearest = run(lambda x, y: poptorch.nearest(x, y, [0, 0], [1, 0, 1]), x, y)
    assert nearest.tolist() == [1, 1]


def test_overlapped_transfers():
    mode = poptorch.OverlapMode.OverlapAccumulationLoop
    begin = lambda x: poptorch.set_overlap_for_input(x, mode)  # noqa: E731
    end = lambda x: poptorch.set_overlap_for_output(x, mode)  # noqa: E731
    sharded = poptorch.Options().setExecutionStrategy(poptorch.ShardedExecution())
    tiles = sharded.clone()
    tiles.TensorLocations.numIOTiles(32)
    assert run(lambda x: end(begin(x) + 1), torch.zeros(1), options=tiles).item() == 1
    for forward, options, message in (
        (lambda x: begin(x) + 1, None, "not supported with poptorch.PipelinedExecution"),
        (lambda x: begin(x) + 1, sharded, "No IO tiles allocated"),
        (lambda x: begin(x + 1), tiles, "which is not a tensor input to the model"),
        (lambda x: begin(x) + x, tiles, "must be the only op applied to an input"),
        (lambda x: end(x) + 1, tiles, "which is not a tensor output to the model"),
        (lambda x: [end(x)] * 2, tiles, "a tensor that is returned twice"),
    ):
        with pytest.raises(poptorch.Error, match=message):
            run(forward, torch.zeros(1), options=options)
