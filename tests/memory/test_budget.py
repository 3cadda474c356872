"""Every term of a budget against numbers worked out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from ipu_proxynorm import memory
from ipu_proxynorm.memory.budget import operator_weights
from ipu_proxynorm.memory.convolutions import needed
from ipu_proxynorm.memory.geometry import passes

# No calibration: tensors as they are, round figures for code.
PLAIN = memory.Parameters(
    live=1,
    program=7,
    code_product=1000,
    code_other=100,
    code_call=10,
    temporaries=0,
    imbalance=1,
)
LAYOUT = memory.Layout(
    precision="16.16",
    optimizer=memory.optimizer_memory("sgd"),  # accumulator and velocity in float32
    gradient_accumulation=4,
)


def captured(**options):
    """Return two convolutions and a linear layer, for 6 images of 3 x 8 x 8 in float16.

    Bytes: images 6·3·64·2 = 2304, outputs of the first convolution and of its ReLU 6·4·64·2 = 3072,
    of the second convolution 6·8·16·2 = 1536, of the linear layer 6·10·2 = 120.
    """
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    images = torch.zeros(6, 3, 8, 8)
    return memory.capture(network, [images], precision="16.16", **options)


def small(size):
    """The weight of an operator whose largest tensor has so few bytes, on a Mk2."""
    return 0.1 + 0.9 * size / (128 * 1472)


def budgets(capture, layout=LAYOUT, parameters=PLAIN):
    return memory.ipu_budgets(capture, layout, parameters)


def test_a_pipeline_of_two_stages_term_by_term():
    first, second = budgets(captured(splits=["2"]))
    # 3·3·3·4 = 108 weights; accumulator and velocity have 4 bytes each.
    assert first.terms["weights"] == 108 * 2
    assert first.terms["gradient_accumulators"] == first.terms["optimizer_state"] == 108 * 4
    # Recomputed from the images of 2·1 + 1 micro-batches in flight.
    assert first.terms["stash"] == 3 * 2304
    # A convolution and the gradient of its weight; ReLU and its gradient; four operators.
    others = 2 * small(3072)
    assert first.terms["code"] == round(7 + 2 * 1000 + others * 100 + (2 + others) * 10)
    # The ReLU works in place: its output and the gradient that came from the second stage.
    assert first.terms["activations"] == 3072 + 3072
    assert first.terms["io_buffers"] == 2304
    # 3·3·4·8 + 128·10 + 10 = 1578 weights; the last stage keeps no stash.
    assert second.terms["weights"] == 1578 * 2
    assert second.terms["gradient_accumulators"] == 1578 * 4
    assert second.terms["stash"] == 0
    # Convolution 1 + 2 passes, linear layer 1 + 2, the sum of the bias; six operators.
    assert second.terms["code"] == round(7 + 6 * 1000 + small(120) * 100 + (5 + small(120)) * 10)
    # While the linear weight's gradient (1280·2) is computed: what came in, the convolution's
    # output and its gradient, the gradient of the logits.
    assert second.terms["activations"] == 3072 + 1536 + 1536 + 2560 + 120
    assert second.terms["io_buffers"] == 120
    for ipu in (first, second):
        assert ipu.terms["temporaries"] == ipu.terms["tile_imbalance"] == 0
        assert ipu.used == sum(ipu.terms.values())
        assert set(ipu.terms) == set(memory.TERMS)


def test_without_recomputation_all_that_is_saved_waits_in_the_stash():
    layout = dataclasses.replace(LAYOUT, recomputation="none")
    first, _ = budgets(captured(splits=["2"]), layout)
    assert first.terms["stash"] == 3 * (2304 + 3072)  # images and the ReLU's output
    # Forward: convolution's output, with the images that come in; the ReLU works in place.
    assert first.terms["activations"] == max(2304 + 3072, 3072 + 3072)


def test_checkpoints_cost_a_copy_for_each_micro_batch_in_flight():
    layout = dataclasses.replace(LAYOUT, checkpoints=("1",))
    first, _ = budgets(captured(splits=["2"]), layout)
    assert first.terms["stash"] == 3 * (2304 + 3072)


def test_one_ipu_keeps_everything_until_its_backward_pass():
    (ipu,) = budgets(captured())
    assert ipu.terms["stash"] == 0
    # As in the last stage above, the images below it besides.
    assert ipu.terms["activations"] == 2304 + 3072 + 1536 + 1536 + 2560 + 120


@pytest.mark.parametrize(
    ("schedule", "depths"),
    [
        ("pipelined", [7, 5, 3, 0]),
        ("grouped", [6, 4, 2, 0]),
        ("interleaved", [3, 2, 1, 0]),
        ("sequential", [1, 1, 1, 0]),
    ],
)
def test_stash_depths_are_those_of_the_frameworks(schedule, depths):
    assert [memory.stash_depth(schedule, stage, 4) for stage in range(4)] == depths


@pytest.mark.parametrize(
    ("optimizer", "precision", "per_weight"),
    [
        ("sgd_combined", "16.16", (2, 4, 0)),
        ("sgd", "16.16", (2, 4, 4)),
        ("rmsprop", "16.32", (4, 4, 8)),
        ("adamw", "32.32", (4, 4, 8)),
    ],
)
def test_bytes_a_weight_by_optimiser_and_precision(optimizer, precision, per_weight):
    layout = dataclasses.replace(
        LAYOUT, optimizer=memory.optimizer_memory(optimizer), precision=precision
    )
    (ipu,) = budgets(captured(), layout)
    names = ("weights", "gradient_accumulators", "optimizer_state")
    assert tuple(ipu.terms[name] for name in names) == tuple(1686 * n for n in per_weight)


def test_accumulators_need_gradient_accumulation():
    layout = dataclasses.replace(LAYOUT, gradient_accumulation=1)
    assert budgets(captured(), layout)[0].terms["gradient_accumulators"] == 0


def test_optimiser_state_in_streaming_memory():
    layout = dataclasses.replace(LAYOUT, optimizer_location="off-chip", replicas=2)
    (ipu,) = budgets(captured(), layout)
    assert ipu.terms["optimizer_state"] == 0
    assert ipu.streaming_memory["optimizer_state"] == 1686 * 4
    prediction = memory.predict_capture(captured(), layout)
    assert prediction.streaming_memory_bytes == 2 * 1686 * 4
    assert prediction.system_bytes == 2 * prediction.replica_bytes


def test_state_is_sharded_over_replicas_in_tensors_of_8192_elements_and_more():
    network = nn.Sequential(nn.Linear(128, 128, bias=False), nn.Linear(128, 8, bias=False))
    capture = memory.capture(network, [torch.zeros(2, 128)])
    layout = dataclasses.replace(LAYOUT, optimizer_location="sharded", replicas=4)
    (ipu,) = budgets(capture, layout)
    assert ipu.terms["optimizer_state"] == 128 * 128 * 4 // 4 + 128 * 8 * 4


def test_stages_on_one_ipu_share_its_code_and_take_turns():
    split = captured(splits=["2"])
    together = dataclasses.replace(split, stage_ipus=(0, 0))
    layout = dataclasses.replace(LAYOUT, schedule="sequential")
    (ipu,) = budgets(together, layout)
    first, second = budgets(split, layout)
    assert ipu.terms["weights"] == first.terms["weights"] + second.terms["weights"]
    assert ipu.terms["stash"] == 2304
    assert ipu.terms["activations"] == second.terms["activations"]
    assert ipu.terms["code"] == pytest.approx(first.terms["code"] + second.terms["code"] - 7, abs=1)


def test_an_operator_of_few_elements_is_on_few_tiles():
    network = nn.Sequential(nn.Linear(8, 8), nn.Hardtanh())
    wide = nn.Conv2d(3, 4, 3, padding=1)
    vector = memory.capture(network, [torch.zeros(2, 8)], training=False)
    image = memory.capture(
        nn.Sequential(wide, nn.Hardtanh()), [torch.zeros(16, 3, 64, 64)], training=False
    )
    chip = memory.find_chip("mk2")

    def by_name(capture):
        weights = operator_weights(capture, capture.operators, chip)
        return {o.name: weights[o.index] for o in capture.operators}

    of_vector, of_image = by_name(vector), by_name(image)
    assert of_vector["hardtanh"] == pytest.approx(small(2 * 8 * 4))
    assert of_vector["addmm"] == of_image["convolution"] == of_image["hardtanh"] == 1


def test_inference_keeps_no_state_and_two_tensors_at_most():
    layout = dataclasses.replace(LAYOUT, optimizer=None)
    (ipu,) = budgets(captured(training=False), layout)
    assert ipu.terms["optimizer_state"] == ipu.terms["stash"] == 0
    assert ipu.terms["activations"] == 2304 + 3072


def test_io_tiles_and_the_fullest_tile_are_terms_of_their_own():
    layout = dataclasses.replace(LAYOUT, io_tiles=32)
    parameters = dataclasses.replace(PLAIN, imbalance=1.25)
    (ipu,) = budgets(captured(), layout, parameters)
    (even,) = budgets(captured())
    assert ipu.terms["io_tiles"] == 32 * 638_976
    assert ipu.terms["tile_imbalance"] == pytest.approx(0.25 * even.used, abs=1)


def test_chips_have_their_published_sram():
    assert memory.find_chip("mk1").sram_bytes == 304 * memory.MIB
    assert memory.find_chip("Bow").sram_bytes == memory.find_chip("mk2").sram_bytes == 940_572_672


def test_the_exchange_target_saves_code():
    parameters = dataclasses.replace(PLAIN, exchange_memory=0.8)
    code = {
        target: budgets(captured(), dataclasses.replace(LAYOUT, exchange=target), parameters)[0]
        for target in memory.EXCHANGES
    }
    cycles = code["cycles"].terms["code"] - 7
    assert code["balanced"].terms["code"] == pytest.approx(7 + 0.9 * cycles, abs=1)
    assert code["memory"].terms["code"] == pytest.approx(7 + 0.8 * cycles, abs=1)


def test_what_lives_is_largest_at_the_end_of_the_forward_pass():
    network = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(64, 64), nn.Sigmoid())])
    capture = memory.capture(network, [torch.zeros(32, 64)])
    moments = memory.stage_moments(capture, 0, "live")
    sizes = np.array([m.bytes for m in moments])
    forward = [m.pass_ == "forward" for m in moments]
    assert abs(int(sizes.argmax()) - sum(forward)) <= 2


def test_buffers_of_host_and_replicas():
    """Images, of one byte each here, on the first stage; logits on the last."""
    first, second = budgets(captured(splits=["2"]), dataclasses.replace(LAYOUT, eight_bit_io=True))
    assert first.terms["io_buffers"] == 6 * 3 * 64
    assert second.terms["io_buffers"] == 6 * 10 * 2
    assert first.terms["replication_buffers"] == second.terms["replication_buffers"] == 0
    replicated = budgets(captured(splits=["2"]), dataclasses.replace(LAYOUT, replicas=2))
    # All gradients at once where they are fewer than 10 MiB.
    assert [ipu.terms["replication_buffers"] for ipu in replicated] == [108 * 2, 1578 * 2]
    wide = memory.capture(nn.Linear(4096, 2048, bias=False), [torch.zeros(2, 4096)])
    (full,) = budgets(wide, dataclasses.replace(LAYOUT, replicas=2))
    assert full.terms["weights"] == 16 << 20
    assert full.terms["replication_buffers"] == 10 << 20


class _WithLabels(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x, labels):
        return nn.functional.cross_entropy(self.second(self.first(x)), labels)


def test_the_host_sends_labels_to_the_stage_that_reads_them():
    inputs = [torch.zeros(6, 8), torch.zeros(6, dtype=torch.long)]
    first, last = budgets(memory.capture(_WithLabels(), inputs, splits=["second"]))
    assert first.terms["io_buffers"] == 6 * 8 * 4
    assert last.terms["io_buffers"] == 6 * 4 + 4  # labels as int32, and the loss


def test_temporaries_of_a_program_are_those_of_its_fullest_moment():
    """One convolution: what is planned for it, by the calibration's factor."""
    parameters = dataclasses.replace(PLAIN, temporaries=1.5)
    network = nn.Conv2d(64, 256, 3, padding=1, bias=False)
    capture = memory.capture(network, [torch.zeros(8, 64, 56, 56)], training=False)
    layout = dataclasses.replace(LAYOUT, optimizer=None)
    (operator,) = (o for o in capture.operators if o.passes)

    def planned(bound):
        return needed(passes(capture, operator), 1472, bound, 2, half_partials=False).mean()

    (ipu,) = budgets(capture, layout, parameters)
    assert ipu.terms["temporaries"] == pytest.approx(1.5 * planned(0.6 * 638_976), abs=1)
    # A smaller proportion has it computed in parts.
    narrow = dataclasses.replace(layout, available_memory_proportion=(0.1,))
    (bounded,) = budgets(capture, narrow, parameters)
    assert bounded.terms["temporaries"] == pytest.approx(1.5 * planned(0.1 * 638_976), abs=1)
    assert bounded.terms["temporaries"] < 0.8 * ipu.terms["temporaries"]


def test_float32_weights_are_copied_to_float16_where_products_read_them():
    network = nn.Sequential(
        nn.Conv2d(4, 8, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 6, bias=False)
    )
    capture = memory.capture(network, [torch.zeros(1, 4, 1, 1)], precision="16.32")
    copied = capture.with_weight_copies
    made = copied.tensors[len(capture.tensors) :]
    assert [(t.layer, t.bytes, t.role) for t in made] == [
        ("0", 2 * 32, "activation"),
        ("3", 2 * 48, "activation"),
    ]
    # The first layer's has no reader after it: no gradient of its input is wanted.
    readers = [
        [o.layer for o in copied.operators if o.backward and t.index in o.inputs] for t in made
    ]
    assert readers == [[], ["3"]]
    wide, narrow = (
        budgets(capture, dataclasses.replace(LAYOUT, precision=precision))[0].terms
        for precision in ("16.32", "16.16")
    )
    assert wide["weights"] == 2 * narrow["weights"] == 4 * (32 + 48)
    # The fullest moment is the last layer's: its copy lives until the gradient of its input.
    assert wide["activations"] == narrow["activations"] + 2 * 48


def test_a_copy_of_a_weight_is_transient_in_inference():
    network = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    capture = memory.capture(network, [torch.zeros(1, 64)], training=False, precision="16.32")
    layout = dataclasses.replace(LAYOUT, optimizer=None)
    wide, narrow = (
        budgets(capture, dataclasses.replace(layout, precision=precision))[0].terms
        for precision in ("16.32", "16.16")
    )
    assert wide["activations"] == narrow["activations"] + 2 * 64 * 64
