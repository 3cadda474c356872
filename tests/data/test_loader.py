"""Combined batches: training drops the ragged end, validation shows every sample once."""

import shutil
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from ipu_proxynorm.backend import poptorch
from ipu_proxynorm.data import (
    IGNORED,
    PaddedDataset,
    create_data,
    loader,
    training_loader,
    validation_loader,
)
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


@pytest.mark.parametrize("count", [1, 23, 24, 25, 49])
def test_processes_together_validate_what_one_with_all_replicas_does(count):
    one = [labels for _, labels in validation_loader(numbered(count), options(4, 1, 3), 2)]
    parts = []
    for process in range(2):
        ours = options(2, 1, 3)
        ours.Distributed.configureProcessId(process, 2)
        parts.append([labels for _, labels in validation_loader(numbered(count), ours, 2)])
    assert len(parts[0]) == len(parts[1]) == len(one)
    for whole, *own in zip(one, *parts):
        # [device iteration][process][row]
        together = torch.stack([part.reshape(3, 4) for part in own], dim=1)
        assert torch.equal(together.reshape(-1), whole)


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


def test_the_order_depends_on_seed_and_epoch_and_nothing_else():
    def epochs(seed=0, workers=0, epoch=1, call=0, count=2):
        loader = training_loader(
            numbered(30), options(1, 3), 2, workers, seed=seed, epoch=epoch, call=call
        )
        return [[batch[1].tolist() for batch in loader] for _ in range(count)]

    first = epochs()
    torch.manual_seed(1)
    assert epochs(workers=2) == first
    assert epochs(seed=1) != first
    assert epochs(epoch=2, count=1) == first[1:]
    assert epochs(call=3) == [first[0][3:], first[1]]


def test_epochs_augment_anew_whatever_the_number_of_workers(tmp_path):
    data = create_data("synthetic", augment="crop")
    batches = []
    for workers in (0, 2):
        subset = Subset(data.train, range(12))
        loader = training_loader(subset, options(1, 2), 3, workers)
        batches.append([images.clone() for _ in range(2) for images, _ in loader])
    for ours, theirs in zip(*batches):
        assert torch.equal(ours, theirs)
    plain = {data.train.images[i][0].numpy().tobytes() for i in range(12)}
    shown = {image.numpy().tobytes() for images in batches[0] for image in images}
    assert len(shown - plain) > 12


def no_space(tensor):
    raise RuntimeError("unable to allocate shared memory: No space left on device")


def test_shared_memory_that_is_exhausted_is_the_workers_error_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "share_memory_", no_space)  # workers inherit it
    with pytest.raises(RuntimeError, match="No space left on device"):
        next(iter(training_loader(numbered(8), options(), 4, workers=1)))


def test_a_worker_whose_batch_cannot_be_sent_ends(monkeypatch, capfd):
    def unsendable(samples):
        return [threading.Lock()]  # fails where the queue pickles it

    monkeypatch.setattr(loader, "default_collate", unsendable)
    monkeypatch.setattr(loader, "get_worker_info", lambda: None)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        next(iter(training_loader(numbered(8), options(), 4, workers=1)))
    assert capfd.readouterr().err == ""


def test_what_a_worker_that_has_ended_was_still_to_be_sent_prints_nothing(capfd):
    context = training_loader(numbered(8), options(), 4, workers=1).multiprocessing_context
    queue = context.Queue()
    queue._reader.close()  # as the worker's end does, and then the loader's
    queue.put(None)
    queue.close()
    queue.join_thread()
    assert capfd.readouterr().err == ""


def test_a_worker_whose_temporary_folder_is_gone_ends_without_a_word(monkeypatch, capfd):
    folder = tempfile.mkdtemp(dir="/tmp")  # paths of sockets are short
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", folder)  # the worker inherits it
        loading = iter(training_loader(numbered(8), options(), 4, workers=1))
    assert [len(next(loading)[0]), len(next(loading)[0])] == [4, 4]
    assert list(Path(folder).glob("pymp-*/listener-*"))
    shutil.rmtree(folder)
    del loading
    assert capfd.readouterr().err == ""
