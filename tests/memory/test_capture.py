"""What a capture holds, against numbers counted by hand and against autograd on real tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ipu_proxynorm import memory, norm
from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.errors import UserError
from ipu_proxynorm.memory.liveness import stage_tensors


def network() -> nn.Sequential:
    """Return two convolutions and a linear layer for (N, 3, 8, 8)."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(8 * 16, 10),
    )


IMAGES = torch.zeros(6, 3, 8, 8)


def test_multiply_adds_are_those_of_the_textbook():
    captured = memory.capture(network(), [IMAGES])
    first, second, linear = 4 * 64 * 27, 8 * 16 * 36, 128 * 10
    assert captured.macs() == 6 * (first + second + linear)
    # Every gradient once, but that of the images.
    assert captured.macs(backward=True) == 6 * (first + 2 * second + 2 * linear)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_transposed_convolution_multiplies_each_input_by_a_whole_kernel(groups):
    layer = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=groups, bias=False)
    captured = memory.capture(layer, [torch.zeros(3, 16, 5, 5)])
    each = 3 * (16 * 25) * (8 // groups) * 4
    assert captured.macs() == captured.macs(backward=True) == each  # the image has no gradient
    assert {o.group_channels for o in captured.operators if o.passes} == {16 // groups}


def test_tensors_have_the_bytes_of_the_micro_batch_asked_for():
    captured = memory.capture(network(), [IMAGES], precision="16.16")
    convolutions = [o for o in captured.operators if o.name == "convolution"]
    made = [captured.tensors[o.outputs[0]] for o in convolutions]
    assert [t.shape for t in made] == [(6, 4, 8, 8), (6, 8, 4, 4)]
    assert [t.bytes for t in made] == [6 * 256 * 2, 6 * 128 * 2]
    bigger = captured.with_micro_batch(9)
    assert [bigger.tensors[t.index].bytes for t in made] == [9 * 256 * 2, 9 * 128 * 2]
    weights = [t.bytes for t in bigger.tensors if t.role == "weight_gradient"]
    assert sorted(weights) == sorted(2 * p.numel() for p in network().parameters())


def test_saved_tensors_are_autograds():
    model = network()
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        model(IMAGES)
    own = {t.untyped_storage().data_ptr() for t in (IMAGES, *model.parameters())}
    expected = sum(size for key, size in storages.items() if key not in own)
    assert memory.capture(model, [IMAGES]).saved_bytes() == expected


def test_the_model_is_left_as_it_was():
    model = network().eval()
    before = [p.clone() for p in model.parameters()]
    memory.capture(model, [IMAGES], precision="16.16")
    assert not model.training
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())


def test_gradients_lie_on_the_stage_of_their_forward_operators():
    model = network()
    poptorch.BeginBlock(model[2], "second", ipu_id=3)
    captured = memory.capture(model, [IMAGES])
    assert captured.stage_names == ("second",)
    assert captured.stage_ipus == (0, 3)
    stages = {(o.layer, o.backward): o.stage for o in captured.operators}
    assert stages[("0", False)] == stages[("0", True)] == 0
    assert stages[("2", False)] == stages[("2", True)] == 1
    cut = memory.capture(network(), [IMAGES], splits=["2"])
    assert [o.stage for o in cut.operators] == [o.stage for o in captured.operators]


class _Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        with poptorch.Block("a", ipu_id=0):
            x = poptorch.recomputationCheckpoint(self.first(x)) * 2.0
        with poptorch.Block("b", ipu_id=1):
            return poptorch.identity_loss(self.second(x), "mean")


def test_blocks_within_forward_are_stages_and_checkpoints_are_known():
    options = poptorch.Options()
    options.setExecutionStrategy(poptorch.PipelinedExecution("a", "b"))
    captured = memory.capture(_Blocks(), [torch.zeros(2, 8)], options=options)
    assert captured.stages == 2
    assert {o.stage for o in captured.operators if o.layer == "second"} == {1}
    assert [captured.tensors[i].layer for i in captured.checkpoints] == ["first"]


def test_an_ipu_that_is_gone_back_to_holds_a_further_stage():
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    for layer, ipu in zip(model, (0, 1, 1, 0)):
        poptorch.BeginBlock(layer, ipu_id=ipu)
    for options in (None, poptorch.Options()):
        captured = memory.capture(model, [torch.zeros(2, 8)], options=options)
        assert captured.stage_ipus == (0, 1, 0)
        stages = [o.stage for o in captured.operators if o.name == "addmm"]
        assert stages == [0, 1, 1, 2]


def test_splits_that_are_no_layer_or_out_of_order_are_named():
    captured = memory.capture(network(), [IMAGES])
    with pytest.raises(UserError, match=r"'layer7' is no layer that runs.*nearest: 0, 1, 2"):
        captured.with_splits(["layer7"])
    with pytest.raises(UserError, match=r"expected \['2', '4'\]"):
        captured.with_splits(["4", "2"])


class _ByValue(nn.Module):
    def forward(self, x):
        return x * 2 if x.sum().item() > 0 else x


def test_a_model_that_looks_at_values_cannot_be_traced():
    with pytest.raises(UserError, match="_ByValue cannot be traced without its values"):
        memory.capture(_ByValue(), [IMAGES], training=False)


class _NoShapes(nn.Module):
    def forward(self, x):
        raise NotImplementedError(
            "Could not run 'aten::max_pool3d_with_indices' with arguments from the 'Meta' backend. "
            "This could be because the operator doesn't exist for this backend"
        )


def test_an_operator_whose_shapes_torch_does_not_know_is_named():
    with pytest.raises(UserError, match=r"^_NoShapes cannot be traced: torch \S+ does not know the "
                       r"shapes that aten::max_pool3d_with_indices makes; a later"):  # fmt: skip
        memory.capture(_NoShapes(), [IMAGES], training=False)


class _FixedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(6, 192).sum()


def test_a_batch_written_into_the_code_is_traced_at_that_batch_only():
    captured = memory.capture(_FixedBatch(), [IMAGES], training=False)
    assert captured.fixed_batch
    with pytest.raises(UserError, match="micro-batch 6 only"):
        captured.with_micro_batch(8)


def test_what_popart_does_not_keep_is_not_counted():
    """No indices of a max-pooling, no counter of Batch Norm's batches, no mask of a dropout."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Dropout(0.5)
    )
    captured = memory.capture(model, [IMAGES], splits=["2"])
    pooled = [t for t in captured.tensors if t.name == "max_pool2d_with_indices"]
    assert sorted(t.bytes for t in pooled) == [0, 6 * 4 * 3 * 3 * 4]
    assert not any(o.name.startswith("add") for o in captured.operators)
    names = {captured.tensors[i].name for i in stage_tensors(captured, 1, ()).saved}
    assert "native_dropout" not in names


@pytest.mark.parametrize("act", [nn.ReLU6(), nn.LeakyReLU(), nn.ReLU()])
def test_clamps_keep_their_output_alone(act):
    layers = [nn.GroupNorm(2, 4), act, nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(4 * 64, 1)]
    found = memory.capture(nn.Sequential(nn.Conv2d(4, 4, 1), *layers), [torch.rand(2, 4, 8, 8)])
    # The norm's input, the activation's output, and the linear layer's input.
    assert found.saved_bytes() == pytest.approx(3 * 4 * 2 * 4 * 64, rel=0.02)


def test_attention_stays_in_its_inputs_type():
    """PopTorch 3.4's torch 2.0 computes float16's attention in float16; later ones would not."""
    before = settings()
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    captured = memory.capture(layer, [torch.zeros(2, 5, 16)], precision="16.16")
    scores = [t for t in captured.tensors if t.shape[-2:] == (5, 5)]
    assert len(scores) >= 3  # products, softmax, its gradient
    assert {t.bytes for t in scores} == {2 * 2 * 5 * 5 * 2}
    assert settings() == before


def settings():
    allowed = getattr(torch.backends.cuda, "fp16_bf16_reduction_math_sdp_allowed", None)
    return None if allowed is None else allowed()


def test_poptorchs_operators_need_no_derivative_on_meta(monkeypatch):
    """The real ones have none there, and PopTorch's functions call nothing else."""
    operators = torch.ops.poptorch
    bare = {
        "identity_loss": lambda x, reduction: x.detach().new_empty(()),
        "recomputation_checkpoint": lambda x: torch.empty_like(x.detach()),
    }

    class Trained(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = network()

        def forward(self, x):
            y = poptorch.recomputationCheckpoint(self.layers(x))
            return poptorch.identity_loss(y, reduction="sum")

    def identity_loss(x, reduction):
        return operators.identity_loss(x, ("sum", "mean", "none").index(reduction))

    expected = memory.capture(Trained(), [IMAGES])
    for name, operator in bare.items():
        monkeypatch.setattr(operators, name, operator, raising=False)
    monkeypatch.setattr(poptorch, "identity_loss", identity_loss)
    monkeypatch.setattr(
        poptorch, "recomputationCheckpoint", lambda x: operators.recomputation_checkpoint(x)
    )
    assert not Trained()(IMAGES).requires_grad  # the double is as bare as the real one
    captured = memory.capture(Trained(), [IMAGES])
    assert {name: getattr(operators, name) for name in bare} == bare  # put back
    assert captured.checkpoints
    assert captured.macs(backward=True) == expected.macs(backward=True)


def test_strided_groups_cost_nothing_on_a_device_that_groups_so():
    def operators(layers, device):
        options = poptorch.Options()
        options._Popart.set("groupNormStridedChannelGrouping", device == "strided")
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3), norm.create_norm_act("gn4", 8, channel_grouping=layers)
        )
        found = memory.capture(model, [torch.zeros(2, 3, 8, 8)], training=True, options=options)
        return [operator.name for operator in found.operators]

    assert operators("strided", "strided") == operators("contiguous", "contiguous")
    assert len(operators("strided", "contiguous")) > len(operators("strided", "strided"))


def test_a_stage_s_moments_lie_on_the_stage():
    """PopTorch begins a block before a layer's other hooks run."""
    layers = [nn.Sequential(nn.Conv2d(4, 4, 1), norm.create_norm_act("ln+pn", 4)) for _ in range(4)]
    model = nn.Sequential(*layers)
    poptorch.BeginBlock(model[2], ipu_id=1)
    for stage in (model[:2], model[2:]):
        norm.share_moments(*stage)
    found = memory.capture(model, [torch.empty(2, 4, 8, 8)])
    assert [o.stage for o in found.operators if o.name == "erfc"] == [0, 1]


class Computing(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def written(x):
    """Write to memory of the host's making, whose type is the device's."""
    y = torch.empty_like(x)
    y.copy_(x)
    return y.to(torch.bfloat16)


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        (nn.Linear(8, 8).bfloat16(), torch.zeros(4, 8), "parameter weight is of torch.bfloat16"),
        (
            nn.ReLU(),
            torch.zeros(4, 8).bfloat16(),
            "input 0 is of torch.bfloat16.*use torch.float16",
        ),
        (Computing(lambda x: x.bfloat16().float()), torch.zeros(4, 8), "_to_copy makes .*bfloat16"),
        (Computing(written), torch.zeros(4, 8), "_to_copy makes .*bfloat16"),
        (
            Computing(lambda x: torch.fft.fft(x).abs()),
            torch.zeros(4, 8),
            "real and imaginary parts",
        ),
    ],
)
def test_types_that_an_ipu_does_not_have_are_refused(model, x, words):
    with pytest.raises(UserError, match=words):
        memory.capture(model, [x], training=False)


def test_types_of_constants_are_the_hosts():
    def rotated(x):
        angles = torch.exp(1j * torch.arange(8.0))
        return x * angles.real + x * angles.imag

    captured = memory.capture(Computing(rotated), torch.zeros(4, 8), training=False)
    assert [t.shape for t in captured.tensors if t.role == "input"] == [(4, 8)]
