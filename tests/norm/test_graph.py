"""The graph-friendly guarantee: accepted operators only, static shapes, no collective."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ipu_proxynorm
from ipu_proxynorm.norm import (
    Conv2d,
    create_norm_act,
    hand_on_to,
    plain_operators,
    share_moments,
)
from ipu_proxynorm.norm.activations import ACTIVATIONS

LISTED = (Path(ipu_proxynorm.__file__).parent / "simulator/trace/data/aten_ops.txt").read_text()
ACCEPTED = {line for line in LISTED.splitlines() if not line.startswith("#")}
# Other names that the dispatcher has for the same: conversions, constants, uninitialized results.
SAME = {"_to_copy": "to", "lift_fresh": "clone", "alias": "view", "empty": "zeros"}


class Operators(TorchDispatchMode):
    """Collects the names and arguments of all operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Set[str] = set()
        self.calls: List[Tuple[str, Tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        namespace, name = func._schema.name.split("::")
        assert namespace == "aten"  # collectives are not
        name = SAME.get(name, name)
        self.calls.append((name, args))
        self.names.add(name[:-1] if name.endswith("_") and not name.endswith("__") else name)
        return func(*args, **(kwargs or {}))


SPECS = ["bn", "in", "ln", "gn2", "none", "ln+pn", "gn2+pn"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_forward_uses_accepted_operators_only(spec: str, act: str) -> None:
    for dtype in (torch.float32, torch.float16):
        for method in ("exact", "sampled"):
            for grouping in ("contiguous", "strided"):
                module = create_norm_act(
                    spec, 4, act, method=method, channel_grouping=grouping, device="meta"
                ).to(dtype)
                with Operators() as operators, plain_operators():
                    # On the meta device there are no values for a shape to depend on.
                    out = module(torch.empty(2, 4, 3, 3, dtype=dtype, device="meta"))
                assert out.shape == (2, 4, 3, 3)
                assert out.dtype == dtype
                assert operators.names <= ACCEPTED, operators.names - ACCEPTED
                if dtype == torch.float16 or spec == "none":
                    continue
                assert operators.names & {"native_group_norm", "native_batch_norm"}


def test_shared_moments_use_accepted_operators_only() -> None:
    model = torch.nn.Sequential(
        create_norm_act("ln+pn", 4, "relu"),
        create_norm_act("gn2+pn", 4, "silu"),
        create_norm_act("gn2+pn", 4, "silu"),
    ).to("meta")
    shared = share_moments(model)
    with Operators() as operators, plain_operators():
        model(torch.empty(2, 4, 3, 3, device="meta"))
    assert shared.computed == 2
    assert operators.names <= ACCEPTED, operators.names - ACCEPTED


@pytest.mark.parametrize(("act", "most"), [("relu", 100), ("silu", 80)])
def test_moments_of_many_layers_are_one_set_of_operators(act: str, most: int) -> None:
    """Forward and backward; what is not counted moves elements, or makes no operator."""
    moving = {"split", "split_with_sizes", "cat", "slice", "view", "detach", "zeros"}
    moving |= {"empty_like", "is_same_size"}  # of this test and of torch 2.0
    counts = []
    for layers in (1, 2, 20):
        model = torch.nn.ModuleList(create_norm_act("gn2+pn", 4, act) for _ in range(layers))
        shared = share_moments(model.to("meta"))
        with Operators() as operators, plain_operators():
            shared.refresh(force=True, dtype=torch.float16)
            constants = [part for layer in model for part in layer._shared if part is not None]
            ones = [torch.empty_like(it) for it in constants]
            torch.autograd.grad(constants, list(model.parameters()), ones)
        counts.append(sum(name not in moving for name, _ in operators.calls))
    assert counts[1] == counts[2] <= most
    assert counts[0] <= counts[1]


def test_the_check_can_fail() -> None:
    with Operators() as operators:
        create_norm_act("ln+pn", 4, torch.special.i0)(torch.randn(2, 4))
    assert not operators.names <= ACCEPTED


def kept(spec: str, act: str, hand_on: bool = False) -> int:
    """Return the bytes that autograd keeps of an element between two convolutions, in float16."""
    norm = create_norm_act(spec, 8, act)
    network = torch.nn.Sequential(Conv2d(8, 8, 1), norm, Conv2d(8, 8, 1))
    if hand_on:
        hand_on_to(norm, network[2])
    network.half().to("meta")
    storages: Dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() == images.numel():
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
        return tensor

    images = torch.empty(4, 8, 32, 32, dtype=torch.float16, device="meta")
    with plain_operators(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = network(images)
    assert out.requires_grad
    return sum(storages.values()) // images.numel() - 2  # the images


@pytest.mark.parametrize(
    ("act", "without", "beside", "handed"),
    [
        ("relu", 4, 1, 0),  # where the bound holds, unless the convolution takes the shift
        ("relu6", 6, 0, 0),
        ("leaky_relu", 6, 0, 0),
        ("silu", 6, 2, 0),  # what the scale's gradient reads, unless the weights have the scale
        ("gelu", 6, 2, 0),
    ],
)
def test_bytes_that_proxy_norm_keeps_of_an_element(
    act: str, without: int, beside: int, handed: int
) -> None:
    assert kept("gn2", act) == without
    assert kept("gn2+pn", act) == without + beside
    assert kept("gn2+pn", act, hand_on=True) == without + handed


@pytest.mark.parametrize("act", ["relu", "relu6", "hardsigmoid"])
def test_bounds_pass_on_what_is_no_number(act: str) -> None:
    x = torch.randn(2, 4, 3, 3)
    x[0, 0, 0, 0] = float("nan")
    with plain_operators():
        out = create_norm_act("gn2+pn", 4, act)(x)
    assert out[0, :2].isnan().all()  # its group
    assert not out[0, 2:].isnan().any()


@pytest.mark.parametrize("spec", ["gn2+pn", "gn2", "ln+pn"])
@pytest.mark.parametrize("apply_act", [True, False])
def test_a_norm_has_both_weight_and_bias_or_neither(spec: str, apply_act: bool) -> None:
    """PopTorch refuses one alone; a bias of zeros, which is no parameter, changes no bit."""
    layer = create_norm_act(spec, 4, apply_act=apply_act)
    x = torch.randn(2, 4, 3, 3)
    with plain_operators(), Operators() as seen:
        out = layer(x)
    assert ("bias" in layer.state_dict()) == (apply_act or spec == "gn2")
    norms = [args for name, args in seen.calls if name == "native_group_norm"]
    assert [args[1] is None for args in norms] == [args[2] is None for args in norms] == [False]
    if not apply_act:
        groups = layer.num_groups
        torch.testing.assert_close(
            out, torch.nn.functional.group_norm(x, groups, layer.weight, layer.bias), atol=0, rtol=0
        )
