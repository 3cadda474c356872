"""Combined batches: training drops the ragged end, validation shows every sample once."""

import pytest
import torch
from torch.utils.data import TensorDataset

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.data import IGNORED, PaddedDataset, training_loader, validation_loader
from ipu_proxynorm.errors import UserError


def numbered(count):
    """Images whose only pixel, and label, is their number."""
    numbers = torch.arange(count)
    return TensorDataset(numbers.to(torch.uint8).view(-1, 1, 1, 1), numbers)


def options(replicas=1, accumulation=1, iterations=1):
    result = poptorch.Options()
    result.replicationFactor(replicas).deviceIterations(iterations)
    result.Training.gradientAccumulation(accumulation)
    return result


@pytest.mark.parametrize(("replicas", "iterations"), [(1, 1), (2, 3), (3, 2), (4, 5)])
@pytest.mark.parametrize("count", [1, 23, 24, 25])
def test_validation_shows_every_sample_once_in_order(count, replicas, iterations):
    loader = validation_loader(numbered(count), options(replicas, 1, iterations), 2)
    images, labels = zip(*loader)
    images, labels = torch.cat(images).flatten(), torch.cat(labels)
    assert {len(batch) for batch, _ in loader} == {2 * replicas * iterations}
    real = labels != IGNORED
    assert labels[real].tolist() == list(range(count))
    assert images[real].tolist() == list(range(count))
    assert not images[~real].any()


def test_training_shows_whole_combined_batches_without_repeats_shuffled():
    loader = training_loader(numbered(50), options(2, 3, 1), 2)
    seen = [labels for _, labels in loader]
    assert [len(labels) for labels in seen] == [12] * 4
    flat = torch.cat(seen).tolist()
    assert len(set(flat)) == 48
    assert flat != sorted(flat)
    again = torch.cat([labels for _, labels in loader]).tolist()
    assert flat != again


def test_training_on_too_few_images_is_refused():
    with pytest.raises(UserError, match=r"11 training images .* combined batch of 12; lower ipu"):
        training_loader(numbered(11), options(2, 3, 1), 2)


def test_a_padded_dataset_ends():
    padded = PaddedDataset(numbered(3), 2)
    assert len(padded) == 4
    assert padded[3][1] == IGNORED
    with pytest.raises(IndexError):
        padded[4]
