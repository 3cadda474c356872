"""Weights as other people's training programs save them."""

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


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("a", torch.ones(2, dtype=torch.complex64), "'a' is of complex numbers"),
        ("a", torch.ones(2, dtype=torch.int32), "'a' is of int32"),
        ("a", torch.ones(2, dtype=torch.bool), "'a' is of bool"),
        ("a", torch.eye(2).to_sparse(), "'a' is sparse"),
        (
            "a",
            torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8),
            "quantized|not executed",
        ),
        (3, torch.ones(2), "3 is no name"),
        ("", torch.ones(2), "'' is no name"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_no_weights_are_refused_by_name(tmp_path, name, value, words):
    torch.save({"state_dict": {**WEIGHTS, name: value}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=words):
        read_weights(tmp_path / "a.pt")
