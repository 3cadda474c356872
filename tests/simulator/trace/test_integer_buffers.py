"""Buffers and parameters of integers are constants (dispatchers/JitDispatch.cpp:108-113)."""

from __future__ import annotations

import pytest
import torch

from ipu_proxynorm import simulator as poptorch


class Counts(torch.nn.Module):
    """Writes to a buffer of integers, through a view too, and returns what it then reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.tensor([1, 2]))
        self.register_buffer("flag", torch.tensor([True, False]))
        self.step = torch.nn.Parameter(torch.tensor(3), requires_grad=False)

    def forward(self, x):
        self.count.add_(self.step)
        self.count[0] += 10
        return x + torch.where(self.flag, self.count, 0)


@pytest.mark.parametrize("replicas", [1, 2])
def test_every_micro_batch_starts_with_the_values_compiled(replicas):
    model = Counts()
    options = poptorch.Options().deviceIterations(2)
    options.replicationFactor(replicas)
    executor = poptorch.inferenceModel(model, options)
    x = torch.zeros(2 * replicas, 2)
    expected = torch.tensor([[14.0, 0.0]]).expand(2 * replicas, 2)
    torch.testing.assert_close(executor(x), expected)
    torch.testing.assert_close(executor(x), expected)
    executor.copyWeightsToHost()
    assert model.count.tolist() == [1, 2]
    model.count.fill_(100)  # later values of the host are not seen
    model.step.fill_(100)
    executor.copyWeightsToDevice()
    torch.testing.assert_close(executor(x), expected)


def test_they_are_compiled_anew():
    model = Counts()
    model.count.fill_(5)
    executor = poptorch.inferenceModel(model)
    torch.testing.assert_close(executor(torch.zeros(1, 2)), torch.tensor([[18.0, 0.0]]))


def test_a_counter_that_nothing_reads_is_no_part_of_the_program():
    executor = poptorch.inferenceModel(torch.nn.BatchNorm1d(2).train())
    executor.compile(torch.zeros(4, 2))
    assert "num_batches_tracked" not in executor.getTensorNames()
    assert not [name for name in executor.getTensorNames() if name.startswith("add_")]


def test_they_cannot_be_updated_by_name():
    options = poptorch.Options().updatableNamedBuffers(["count"])
    with pytest.raises(poptorch.Error, match=r"no buffer count that.*of integers are constants"):
        poptorch.inferenceModel(Counts(), options).compile(torch.zeros(1, 2))
