"""Tensors of the host in ``forward``: no parameter, buffer or input, so they have values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ipu_proxynorm import simulator as poptorch

pytestmark = pytest.mark.simulator

HOST = {
    "item": lambda rows: rows[0].item(),
    "int": lambda rows: int(rows[0]),
    "bool": lambda rows: 2 if rows[0] else 0,
    "tolist": lambda rows: rows.tolist()[0],
    "numpy": lambda rows: int(rows.numpy()[0]),
    "array": lambda rows: int(np.asarray(rows)[0]),
    "sparse": lambda rows: int(torch.eye(3).to_sparse().coalesce().indices().numpy()[0, 2]),
    "cpu": lambda rows: int((rows.cpu() + 0)[0]),
    "mask": lambda rows: int(rows[rows > 1]),
    "unique": lambda rows: rows.unique().tolist()[1],
    "layer": lambda rows: int(torch.nn.functional.one_hot(rows).argmax(1)[0]),
    "wide": lambda rows: int(rows.double().sum().item()),
}


class Picks(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how, self.rows = how, [torch.tensor([2, 0])]  # in a list: not a buffer

    def forward(self, x):
        return x[HOST[self.how](self.rows[0])]


@pytest.mark.parametrize("how", HOST)
def test_a_host_tensor_has_values(how):
    assert poptorch.inferenceModel(Picks(how))(torch.arange(3.0)).item() == 2


@pytest.mark.parametrize(
    "move",
    [
        lambda rows, x: rows.to("ipu"),
        lambda rows, x: rows.to(x.device),
        lambda rows, x: rows.to(x),
        lambda rows, x: rows.type_as(x),
    ],
)
def test_a_host_tensor_that_is_moved_is_a_constant(move):
    rows = torch.tensor([2.0, 0.0, 1.0])
    assert poptorch.inferenceModel(lambda x: x + move(rows, x))(torch.ones(3)).tolist() == [3, 1, 2]


def test_a_host_tensor_that_is_not_moved_is_refused():
    """Source: PopTorch's TypeInferenceHandler.cpp:262-270."""
    rows = torch.tensor([2.0, 0.0, 1.0])
    with pytest.raises(poptorch.Error, match=r"Expected an IPU tensor .*test_host_tensors"):
        poptorch.inferenceModel(lambda x: x + rows.numpy().size * rows)(torch.ones(3))
