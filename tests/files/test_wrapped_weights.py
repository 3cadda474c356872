"""Weights as other people's training programs save them."""

import argparse

import pytest
import torch

from ipu_proxynorm.errors import UserError
from ipu_proxynorm.files.weights import read_weights

WEIGHTS = {"stem.weight": torch.ones(2, 3), "bn.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", ""])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_state_dicts_are_found_within_what_is_saved(tmp_path, wrapper, prefix):
    named = {f"{prefix}{name}": value for name, value in WEIGHTS.items()}
    torch.save({wrapper: named, "epoch": 3} if wrapper else named, tmp_path / "a.pt")
    found = read_weights(tmp_path / "a.pt")
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())


ONES = torch.ones(2, 2)
TORCH_HAS_FLOAT8 = hasattr(torch, "float8_e5m2")
NO_WEIGHTS = {
    **{
        f"'a' is of {str(kind)[6:]};": ONES.to(kind)
        for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
    },
    "'a' is of complex numbers": ONES.to(torch.complex64),
    "'a' is of complex": torch.tensor(1j),
    r"'a' is sparse .torch.sparse_coo": ONES.to_sparse(),
    r"'a' is sparse .torch.sparse_csr": ONES.to_sparse_csr(),
    "'a' has a shape and no values": ONES.to("meta"),
    "'a' is no tensor, but of type NoneType": None,
    "'a' is no tensor, but of type list": [ONES],
    **({"'a' is of float8_e5m2": ONES.to(torch.float8_e5m2)} if TORCH_HAS_FLOAT8 else {}),
    "holds argparse.Namespace, which was not executed": argparse.Namespace(a=1),
}


@pytest.mark.parametrize("words", NO_WEIGHTS)
@pytest.mark.filterwarnings("ignore")
def test_what_is_no_weight_is_refused_by_name(tmp_path, words):
    torch.save({"state_dict": {**WEIGHTS, "a": NO_WEIGHTS[words]}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=words):
        read_weights(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors_are_refused(tmp_path):
    quantized = [
        torch.quantize_per_tensor(ONES, 1.0, 0, torch.qint8),
        torch.quantize_per_channel(ONES, torch.ones(2), torch.zeros(2), 0, torch.quint8),
    ]
    for value in quantized:
        torch.save({**WEIGHTS, "a": value}, tmp_path / "a.pt")
        with pytest.raises(UserError, match=r"'a' is quantized|holds quantized tensors, which was"):
            read_weights(tmp_path / "a.pt")


@pytest.mark.parametrize("name", [3, 1.5, None, True, ("a", "b"), "", " ", "a\nb", "a\x1b[31m"])
def test_what_is_no_name_is_refused(tmp_path, name):
    torch.save({"state_dict": {**WEIGHTS, name: ONES}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="is no name; expected tensors of floats by name") as caught:
        read_weights(tmp_path / "a.pt")
    assert str(caught.value).isprintable()
