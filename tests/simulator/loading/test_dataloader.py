from __future__ import annotations

import itertools
import os
import pathlib
import signal
import subprocess
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch

from ipu_proxynorm.simulator import ICustomArgParser, enums, registerCustomArgParser
from ipu_proxynorm.simulator._dataloader import AsynchronousDataAccessor, DataLoader
from ipu_proxynorm.simulator.loading.data_worker import rebatch
from ipu_proxynorm.simulator.options import Options
from ipu_proxynorm.simulator.poptorch_core import Error

pytestmark = pytest.mark.simulator


@pytest.fixture(autouse=True)
def _workers_can_import_this_module(monkeypatch):
    """Let processes that unpickle the data sets below find this module by its name."""
    folder = str(pathlib.Path(__file__).parents[__name__.count(".")])
    monkeypatch.setattr(sys, "path", [folder, *sys.path])


class Counting(torch.utils.data.Dataset):
    """Element i is (2, 3) tensors full of i; as a dictionary or alone."""

    def __init__(self, length, *, named=False, dtype=torch.float32, broken_from=None):
        self.length = length
        self.named = named
        self.dtype = dtype
        self.broken_from = broken_from

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if self.broken_from is not None and index >= self.broken_from:
            raise RuntimeError("this element cannot be read")
        if index >= self.length:
            raise IndexError(index)
        image = torch.full((2, 3), float(index)).to(self.dtype)
        return {"image": image, "label": torch.tensor(index)} if self.named else image


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, length):
        self.length = length

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        first, step = (info.id, info.num_workers) if info else (0, 1)
        for index in range(first, self.length, step):
            yield torch.full((2,), float(index))


class Named(NamedTuple):
    first: Any
    second: Any


def in_tensors(batch):
    """Return a container of numbers with each number in a tensor."""
    if isinstance(batch, dict):
        return type(batch)((key, torch.full((2,), float(n))) for key, n in batch.items())
    full = [torch.full((2,), float(n)) for n in batch]
    return type(batch)(*full) if isinstance(batch, Named) else type(batch)(full)


def no_init(worker_id):
    """Splitting is done by the data set itself."""


def values(batches):
    return [int(row.flatten()[0]) for batch in batches for row in batch]


def combined_options(device_iterations=1, replicas=1, accumulation=1):
    options = Options().deviceIterations(device_iterations).replicationFactor(replicas)
    options.Training.gradientAccumulation(accumulation)
    return options


def test_combined_batch_is_the_product_and_keeps_the_order():
    loader = DataLoader(combined_options(2, 3, 2), Counting(100), batch_size=4)
    assert loader.combinedBatchSize == 48
    assert len(loader) == 2
    batches = list(loader)
    assert [batch.shape for batch in batches] == [(48, 2, 3)] * 2
    assert values(batches) == list(range(96))  # the remainder is dropped


def test_input_groups_share_their_rows():
    options = combined_options(replicas=4).inputReplicaGrouping(2, enums.CommGroupType.Consecutive)
    assert DataLoader(options, Counting(8), batch_size=3).combinedBatchSize == 6


def test_drop_last_false_returns_the_remainder_with_a_warning(caplog):
    loader = DataLoader(combined_options(2), Counting(10), batch_size=2, drop_last=False)
    assert [len(batch) for batch in loader] == [4, 4, 2]
    assert "batch size of 2" in caplog.text


def test_no_batch_size_passes_elements_through():
    loader = DataLoader(Options(), Counting(3), batch_size=None, drop_last=False)
    assert [batch.shape for batch in loader] == [(2, 3)] * 3
    assert loader.combinedBatchSize is None


def test_options_are_frozen_and_kept():
    options = Options()
    loader = DataLoader(options, Counting(3))
    assert loader.options is options
    with pytest.raises(AttributeError, match="frozen"):
        options.deviceIterations(2)


def test_batch_sampler_is_combined():
    dataset = Counting(11)
    sampler = torch.utils.data.BatchSampler(
        torch.utils.data.SequentialSampler(dataset), batch_size=2, drop_last=True
    )
    kept = DataLoader(combined_options(2), dataset, batch_sampler=sampler, drop_last=False)
    assert [len(batch) for batch in kept] == [4, 4, 2]
    dropped = DataLoader(combined_options(2), dataset, batch_sampler=sampler)
    assert values(dropped) == list(range(8))
    joined = DataLoader(
        combined_options(2),
        dataset,
        batch_sampler=sampler,
        mode=enums.DataLoaderMode.AsyncRebatched,
    )
    try:  # drop_last is lost on the way (PopTorch's __init__.py:306, 441)
        assert len(joined) == 3
    finally:
        joined.terminate()
    with pytest.raises(Error, match="mutually exclusive with batch_size, shuffle"):
        DataLoader(Options(), dataset, batch_sampler=sampler, batch_size=2)
    spread = Options()
    spread.Distributed.configureProcessId(0, 2)
    with pytest.raises(Error, match="auto_distributed_partitioning=True"):
        DataLoader(spread, dataset, batch_sampler=sampler)


class Pair:
    """A batch of a class of its own, which an argument parser takes apart."""

    def __init__(self, data, label):
        self.data, self.label = data, label


class PairParser(ICustomArgParser):
    def yieldTensors(self, struct):
        yield struct.data
        yield struct.label

    def reconstruct(self, original_structure, tensor_iterator):
        return Pair(next(tensor_iterator), next(tensor_iterator))


def test_batches_of_a_class_of_its_own_are_combined():
    dataset = Counting(9, named=True)
    registerCustomArgParser(Pair, PairParser())
    try:
        loader = DataLoader(
            combined_options(2),
            dataset,
            batch_sampler=torch.utils.data.BatchSampler(range(9), 2, drop_last=True),
            collate_fn=lambda rows: Pair(
                torch.stack([row["image"] for row in rows]),
                torch.stack([row["label"] for row in rows]),
            ),
        )
        batches = list(loader)
    finally:
        registerCustomArgParser(Pair, None)
    assert [type(batch) for batch in batches] == [Pair, Pair]
    assert values([batch.data for batch in batches]) == list(range(8))
    assert [batch.label.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def distributed_loader(process, processes, length=20, seed=None, **kwargs):
    options = Options()
    if seed is not None:
        options.randomSeed(seed)
    options.Distributed.configureProcessId(process, processes)
    return DataLoader(options, Counting(length), batch_size=3, **kwargs)


def test_processes_read_contiguous_ranges():
    parts = [values(distributed_loader(process, 2)) for process in range(2)]
    assert parts == [list(range(9)), list(range(9, 18))]


def test_uneven_parts_without_drop_last():
    parts = [values(distributed_loader(p, 3, length=8, drop_last=False)) for p in range(3)]
    assert parts == [[0, 1, 2], [3, 4, 5], [6, 7]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_share_a_permutation_that_changes_each_epoch(num_workers):
    loaders = [
        distributed_loader(p, 2, seed=3, shuffle=True, num_workers=num_workers) for p in range(2)
    ]
    epochs = [[values(loader) for loader in loaders] for _ in range(3)]
    generator = torch.Generator().manual_seed(3)
    for number, parts in enumerate(epochs):
        # The two left over are first left out at the beginning, then at the end; workers that stay
        # alive have the first epoch's start (PopTorch's __init__.py:200).
        start = 2 if number % 2 == 0 or num_workers else 0
        expected = torch.randperm(20, generator=generator)[start : start + 18].tolist()
        assert parts[0] + parts[1] == expected


def test_what_a_part_of_a_process_leaves_over_is_read_in_turn():
    loaders = [distributed_loader(p, 3, seed=3, shuffle=True, length=17) for p in range(3)]
    generator = torch.Generator().manual_seed(3)
    for start in (17 % 3, 0, 17 % 3):  # not the 8 that all parts together leave over
        expected = torch.randperm(17, generator=generator)[start : start + 9].tolist()
        assert [index for loader in loaders for index in values(loader)] == expected


def test_distributed_shuffle_needs_a_seed_and_enough_elements():
    with pytest.raises(AssertionError, match="randomSeed"):
        distributed_loader(0, 2, shuffle=True)
    with pytest.raises(Error, match="has 5 elements but one step of 2 processes needs 6"):
        distributed_loader(0, 2, length=5)


def test_iterable_dataset_checks(caplog):
    spread = Options()
    spread.Distributed.configureProcessId(0, 2)
    with pytest.raises(AssertionError, match="not supported for IterableDataset"):
        DataLoader(spread, Stream(4))
    DataLoader(Options(), Stream(4), num_workers=2)
    assert "no worker_init_fn specified" in caplog.text


@pytest.mark.parametrize(
    ("sizes", "drop_last", "expected"),
    [
        ([3, 3, 3], True, [4, 4]),
        ([3, 3, 3], False, [4, 4, 1]),
        ([9, 0, 2], True, [4, 4]),
        ([9, 0, 2], False, [4, 4, 3]),
        ([4, 4], False, [4, 4]),
        ([], False, []),
    ],
)
def test_rebatch_joins_and_cuts_without_losing_rows(sizes, drop_last, expected):
    rows = iter(range(100))
    batches = [[torch.tensor(list(itertools.islice(rows, size)))] for size in sizes]
    result = [batch[0].tolist() for batch in rebatch(batches, 4, drop_last)]
    assert [len(batch) for batch in result] == expected
    assert [row for batch in result for row in batch] == list(range(sum(expected)))


@pytest.mark.parametrize("named", [False, True])
def test_async_loader_gives_every_epoch_whole_and_starts_over(named):
    dataset = Counting(7, named=named, dtype=torch.float16)
    loader = DataLoader(Options(), dataset, batch_size=2, mode=enums.DataLoaderMode.Async)
    try:
        for interrupt_after in (None, 1, None, 2, None):
            seen = []
            for number, batch in enumerate(loader):
                images = batch["image"] if named else batch
                assert images.dtype == torch.float16
                seen += values([images])
                if named:
                    assert batch["label"].tolist() == seen[-2:]
                if number == interrupt_after:
                    break
            expected = 6 if interrupt_after is None else 2 * (interrupt_after + 1)
            assert seen == list(range(expected))
        assert len(loader) == 3
    finally:
        loader.terminate()


def test_async_rebatched_workers_lose_less_than_a_batch_and_may_keep_the_rest():
    for drop_last, expected in ((True, 20), (False, 23)):
        loader = DataLoader(
            combined_options(2),
            Stream(23),
            batch_size=2,
            num_workers=2,
            worker_init_fn=no_init,
            mode=enums.DataLoaderMode.AsyncRebatched,
            rebatched_worker_size=1,
            drop_last=drop_last,
        )
        try:
            seen = values(loader)
            assert len(seen) == len(set(seen)) == expected
        finally:
            loader.terminate()
    with pytest.raises(AssertionError, match="rebatched_worker_size"):
        DataLoader(
            Options(),
            Counting(9),
            batch_size=2,
            mode=enums.DataLoaderMode.AsyncRebatched,
            rebatched_worker_size=3,
        )


@pytest.mark.parametrize("strategy", [enums.SharingStrategy.Fork, enums.SharingStrategy.FileSystem])
def test_accessor_over_a_plain_dataset(strategy):
    accessor = AsynchronousDataAccessor(
        Counting(5), sharing_strategy=strategy, load_indefinitely=False, buffer_size=2
    )
    try:
        assert len(accessor) == 5
        for _ in range(2):
            assert [int(element[0, 0]) for element in accessor] == list(range(5))
    finally:
        accessor.terminate()
    with pytest.raises(AssertionError, match="terminated"):
        iter(accessor)


@pytest.mark.parametrize(
    ("batch", "expected"), [(Named(1, 2), list), ((1, 2), list), (OrderedDict(a=1, b=2), dict)]
)
def test_accessor_gives_lists_and_plain_dictionaries(batch, expected):
    tensors = in_tensors(batch)
    accessor = AsynchronousDataAccessor([tensors], sharing_strategy=enums.SharingStrategy.Fork)
    try:
        (element,) = accessor
        assert type(element) is expected
        found = element.values() if isinstance(element, dict) else element
        assert [tensor.tolist() for tensor in found] == [[1.0, 1.0], [2.0, 2.0]]
    finally:
        accessor.terminate()


def test_errors_of_the_dataset_reach_the_parent():
    with pytest.raises(Error, match="worker thread failed to start"):
        AsynchronousDataAccessor(
            Counting(3, broken_from=0), sharing_strategy=enums.SharingStrategy.Fork
        )
    with pytest.raises(Error, match="worker thread failed to start"):
        AsynchronousDataAccessor(Counting(0), sharing_strategy=enums.SharingStrategy.Fork)
    accessor = AsynchronousDataAccessor(
        Counting(3, broken_from=2), sharing_strategy=enums.SharingStrategy.Fork
    )
    with pytest.raises(AssertionError, match="error occurred in the data fetcher"):
        list(accessor)
    accessor.terminate()


def test_early_preload_fills_the_ring_before_anybody_asks():
    ready = {}
    for early in (False, True):
        accessor = AsynchronousDataAccessor(
            Counting(9),
            buffer_size=4,
            early_preload=early,
            sharing_strategy=enums.SharingStrategy.Fork,
        )
        slots = accessor._worker._data_buffers.indices_mem
        for _ in range(200):
            if int(slots.sum()) == 4:
                break
            torch.multiprocessing.Event().wait(0.005)
        ready[early] = int(slots.sum())
        accessor.terminate()
    assert ready == {False: 1, True: 4}


def test_an_accessor_is_not_put_on_a_loader_that_has_one_or_leaves_rows_over():
    loader = DataLoader(
        Options(),
        Counting(4),
        mode=enums.DataLoaderMode.Async,
        async_options={"sharing_strategy": enums.SharingStrategy.Fork},
    )
    with pytest.raises(Error, match="already uses an AsynchronousDataAccessor"):
        AsynchronousDataAccessor(loader)
    loader.terminate()
    uneven = DataLoader(Options(), Counting(5), batch_size=2, drop_last=False)
    with pytest.raises(AssertionError, match="'drop_last=False'"):
        AsynchronousDataAccessor(uneven)


INTERRUPTED = """
import signal
import time
import torch
import ipu_proxynorm.simulator as poptorch

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    data = torch.utils.data.TensorDataset(torch.zeros(64, 2))
    loader = poptorch.DataLoader(
        poptorch.Options(), data, batch_size=2, num_workers=1, mode=poptorch.DataLoaderMode.Async
    )
    next(iter(loader))
    try:
        print("waiting", loader._accessor._worker._process.pid, flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


def test_an_interrupt_ends_program_and_worker_quietly(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(INTERRUPTED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    program = subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert program.stdout is not None
    worker = int(program.stdout.readline().split()[1])
    os.kill(worker, signal.SIGINT)
    program.send_signal(signal.SIGINT)
    rest, _ = program.communicate(timeout=60)
    assert rest == "interrupted\n"
    assert program.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
