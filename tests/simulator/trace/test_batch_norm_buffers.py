"""Batch Norm's running statistics: written in training only, per replica."""

import pytest
import torch

from ipu_proxynorm.simulator import Error, Options, inferenceModel, trainingModel

pytestmark = pytest.mark.simulator


class Classifier(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x, labels=None):
        y = self.norm(x)
        return y if labels is None else torch.nn.functional.cross_entropy(y, labels)


def test_inference_on_replicas_reads_them():
    model = Classifier().eval()
    model.norm.running_mean.fill_(2.0)
    x = torch.randn(4, 3)
    executor = inferenceModel(model, Options().replicationFactor(2))
    torch.testing.assert_close(executor(x), (x - 2) / (1 + 1e-5) ** 0.5)


def test_training_on_replicas_writes_them_each_its_own():
    labels = torch.tensor([0, 1, 2, 0])
    with pytest.raises(Error, match="broadcasting buffers"):
        trainingModel(Classifier(), Options().replicationFactor(2))(torch.randn(4, 3), labels)
    model, x = Classifier(), torch.randn(4, 3)
    executor = trainingModel(model, Options().replicationFactor(2).broadcastBuffers(False))
    executor(x, labels)
    # The host sees the first replica's.
    torch.testing.assert_close(model.norm.running_mean + 0, 0.1 * x[:2].mean(0))
